import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import koala_nb as kn
from koala_nb.distillation import similarity
from koala_nb.distillation.similarity import cka, noisy_inputs, outputs

PROMPTS = ["a red circle", "a blue square"]


def features(seed, channels=6):
    return torch.randn(2, 16, channels, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_cka_ignores_rotation_scale_and_shift(seed, scale):
    x = features(seed)
    rotation, _ = torch.linalg.qr(features(seed + 1, 6)[0, :6])
    assert cka(x, x) == pytest.approx(1)
    assert cka(x, scale * x @ rotation + 3) == pytest.approx(1, abs=1e-5)
    assert cka(x, features(seed + 2)) == pytest.approx(cka(features(seed + 2), x), rel=1e-6)


def test_cka_of_a_known_case():
    """Orthogonal features share nothing; one shared direction of two gives 1 / sqrt(2)."""
    a = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    b = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    assert cka(a, b) == pytest.approx(0, abs=1e-12)
    assert cka(torch.cat([a, b], 1), a) == pytest.approx(0.5**0.5)
    with pytest.raises(ValueError, match="4 and 3 positions"):
        cka(a, b[:3])


def test_colours_follow_the_features():
    """Positions with equal features get one colour, groups get different ones."""
    groups = torch.tensor([[0, 0, 1, 2], [2, 1, 0, 3]])
    centers = torch.eye(4) * torch.tensor([5.0, 3.0, 2.0, 1.0])
    found = [np.asarray(image) for image in similarity.principal_colours(centers[groups], 2, 2)]
    assert [picture.shape for picture in found] == [(2, 2, 3)] * 2
    colours = {}
    for picture, row in zip(found, groups):
        for pixel, group in zip(picture.reshape(4, 3), row.tolist()):
            assert colours.setdefault(group, tuple(pixel)) == tuple(pixel)
    assert len(set(colours.values())) == 4


@pytest.fixture(scope="module")
def images(loaded):
    return list(kn.generate(loaded, PROMPTS, [0], steps=1, height=64, width=64).images)


def test_inputs_are_the_pictures_with_their_noise(loaded, images):
    clear, noisy = (noisy_inputs(loaded, images, PROMPTS, t) for t in (0, 999))
    with torch.no_grad():
        pixels = loaded.image_processor.preprocess(images)
        latents = loaded.vae.encode(pixels).latent_dist.mode() * loaded.vae.config.scaling_factor
    alphas = loaded.scheduler.alphas_cumprod
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    for inputs, alpha in ((clear, alphas[0]), (noisy, alphas[999])):
        expected = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        torch.testing.assert_close(inputs["sample"], expected)
    states, _, pooled, _ = loaded.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    torch.testing.assert_close(clear["encoder_hidden_states"], states)
    torch.testing.assert_close(clear["added_cond_kwargs"]["text_embeds"], pooled)
    assert clear["added_cond_kwargs"]["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]] * 2


def test_outputs_of_a_pass(loaded, images):
    inputs = noisy_inputs(loaded, images, PROMPTS, 500)
    names = [name for name, _ in loaded.unet.named_modules() if name.endswith(".attn1")]
    features = outputs(loaded.unet, inputs, names)
    assert list(features) == names and len(names) == 21
    assert all(value.ndim == 3 and len(value) == 2 for value in features.values())
    first, second = list(features.values())[:2]
    assert 0 <= cka(first, second) <= 1 and not loaded.unet._forward_hooks


@pytest.mark.parametrize(
    ("prompts", "timestep", "message"),
    [(["a"], 500, "2 images and 1 prompts"), (PROMPTS, 1000, "Timestep 1000")],
)
def test_bad_inputs_are_one_sentence(loaded, images, prompts, timestep, message):
    with pytest.raises(ValueError, match=message):
        noisy_inputs(loaded, images, prompts, timestep)
