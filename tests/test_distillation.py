import pytest
import torch
from diffusers import UNet2DConditionModel

from koala_nb import catalog
from koala_nb.catalog import SDXL_UNET
from koala_nb.distillation import (
    feature_loss,
    features,
    inherit,
    self_attention_names,
    teacher_name,
)

# SDXL-Base's and KOALA's structures, narrow.
TINY = {
    **SDXL_UNET,
    "sample_size": 8,
    "block_out_channels": (8, 16, 32),
    "attention_head_dim": [1, 2, 4],
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
STUDENTS = ("koala-lightning-1b", "koala-lightning-700m")
PAIRS = {"koala-lightning-1b": 30, "koala-lightning-700m": 21}
LAYERS = (2, 1)  # of the teacher, of the student


def structure(system):
    """What of a system's configuration differs from SDXL-Base's."""
    return catalog.find(system).unet


def build(system=None):
    torch.manual_seed(0 if system is None else 1)
    config = TINY if system is None else {**TINY, **structure(system)}
    return UNet2DConditionModel(**config)


@pytest.fixture(scope="module")
def teacher():
    """A narrow SDXL. Leave it as it is."""
    return build().requires_grad_(False).eval()


@pytest.fixture(params=STUDENTS)
def student(request):
    return request.param, build(request.param)


def call(unet):
    generator = torch.Generator().manual_seed(2)
    noisy = torch.randn(1, 4, 8, 8, generator=generator)
    states = torch.randn(1, 5, 16, generator=generator)
    added = {"text_embeds": torch.ones(1, 16), "time_ids": torch.ones(1, 6)}
    return unet(noisy, torch.tensor([500]), states, added_cond_kwargs=added).sample


def shapes(unet):
    return {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}


# --- the map of weights -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("up_blocks.0.resnets.1.conv1.weight", "up_blocks.0.resnets.2.conv1.weight"),
        ("up_blocks.1.attentions.1.proj_in.bias", "up_blocks.1.attentions.2.proj_in.bias"),
        (
            "up_blocks.0.attentions.1.transformer_blocks.1.attn1",
            "up_blocks.0.attentions.2.transformer_blocks.1.attn1",
        ),
        ("up_blocks.2.resnets.1", "up_blocks.2.resnets.2"),
        ("up_blocks.2.resnets.0.norm1.weight", "up_blocks.2.resnets.0.norm1.weight"),
        ("up_blocks.1.upsamplers.0.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
        ("down_blocks.1.resnets.0.conv1.weight", "down_blocks.1.resnets.0.conv1.weight"),
        ("mid_block.resnets.1.conv1.weight", "mid_block.resnets.1.conv1.weight"),
        ("time_embedding.linear_1.weight", "time_embedding.linear_1.weight"),
    ],
)
def test_names_of_the_teacher(name, expected):
    assert teacher_name(name) == expected
    assert teacher_name(name, 1, 1) == teacher_name(name, 2, 2) == name


@pytest.mark.parametrize("system", STUDENTS)
def test_the_map_fits_the_real_systems(system):
    """Built on the meta device: SDXL-Base against KOALA-1B and KOALA-700M."""
    with torch.device("meta"):
        large = shapes(UNet2DConditionModel(**SDXL_UNET))
        small = shapes(UNet2DConditionModel(**catalog.find(system).unet_config))
    assert all(large[teacher_name(name)] == shape for name, shape in small.items())
    assert sum(large.get(name) != shape for name, shape in small.items()) == 8


def test_the_map_fits_and_names_alone_fail_on_eight_tensors(teacher, student):
    large, small = shapes(teacher), shapes(student[1])
    assert all(large[teacher_name(name)] == shape for name, shape in small.items())
    assert sum(large.get(name) != shape for name, shape in small.items()) == 8


def test_a_student_inherits_every_tensor(teacher, student):
    _, unet = student
    inherit(unet, teacher)
    source = teacher.state_dict()
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, source[teacher_name(name)]), name
    # Not by reference: training the student leaves the teacher alone.
    with torch.no_grad():
        unet.conv_in.weight.add_(1)
    assert not torch.equal(unet.conv_in.weight, teacher.conv_in.weight)


def test_the_teacher_inherited_by_itself_is_the_teacher(teacher):
    twin = UNet2DConditionModel(**TINY).eval()
    inherit(twin, teacher)
    names = self_attention_names(twin)
    with torch.no_grad(), features(twin, names) as mine, features(teacher, names) as theirs:
        assert torch.equal(call(twin), call(teacher))
    assert float(feature_loss(mine, theirs, (2, 2))) == 0
    assert len(mine) == 70


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"block_out_channels": (8, 16, 64)}, r"down_blocks\.2\.\S+ \(64"),
        ({"transformer_layers_per_block": [1, 2, 11]}, r"transformer_blocks\.10\.\S+ .*is none"),
        ({"layers_per_block": 3}, r"resnets\.2\.\S+ "),
    ],
)
def test_a_student_of_another_structure_is_refused_and_left_as_it_is(teacher, change, named):
    unet = UNet2DConditionModel(**{**TINY, "layers_per_block": 1, **change})
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with pytest.raises(ValueError, match=named):
        inherit(unet, teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


# --- features ---------------------------------------------------------------------------------


def count_hooks(unet):
    return sum(len(module._forward_hooks) for module in unet.modules())


def test_pairs_of_self_attention(teacher, student):
    """21 pairs for KOALA-700M, 30 for KOALA-1B, and every pair of outputs has one shape."""
    system, unet = student
    names = self_attention_names(unet)
    pairs = [teacher_name(name) for name in names]
    assert len(names) == len(set(pairs)) == PAIRS[system]
    with torch.no_grad(), features(unet, names) as mine, features(teacher, pairs) as theirs:
        call(unet), call(teacher)
    assert list(theirs) and set(theirs) == set(pairs)
    assert all(mine[name].shape == theirs[teacher_name(name)].shape for name in names)
    expected = sum(((mine[n] - theirs[teacher_name(n)]) ** 2).mean() for n in names)
    assert float(feature_loss(mine, theirs, LAYERS)) == pytest.approx(float(expected), rel=1e-5)


def test_features_are_the_modules_outputs_and_change_nothing(teacher):
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    attention, outputs = teacher.get_submodule(name), []
    forward = attention.forward
    attention.forward = lambda *a, **k: outputs.append(forward(*a, **k)) or outputs[-1]
    try:
        with torch.no_grad(), features(teacher, [name]) as found:
            watched = call(teacher)
    finally:
        del attention.forward
    assert found[name] is outputs[0]
    with torch.no_grad():
        assert torch.equal(watched, call(teacher))


def test_hooks_go_away_on_exit_on_error_and_after_a_bad_name(teacher):
    names = self_attention_names(teacher)
    with features(teacher, names):
        assert count_hooks(teacher) == 70
    assert count_hooks(teacher) == 0
    with pytest.raises(ZeroDivisionError), features(teacher, names):
        _ = 1 / 0
    assert count_hooks(teacher) == 0
    with pytest.raises(AttributeError, match="attn9"), features(teacher, [names[0], "attn9"]):
        pass
    assert count_hooks(teacher) == 0


def test_the_feature_loss_sums_over_pairs():
    name = "up_blocks.0.attentions.1.transformer_blocks.0.attn1"
    mine = {name: torch.zeros(2, 3), "mid_block.attentions.0.attn1": torch.ones(4)}
    theirs = {teacher_name(name): torch.full((2, 3), 2.0), "mid_block.attentions.0.attn1": torch.zeros(4)}  # fmt: skip  # noqa: E501
    assert float(feature_loss(mine, theirs, LAYERS)) == pytest.approx(4 + 1)


def test_the_feature_loss_trains_the_student(teacher, student):
    """The loss reaches the student's weights, and a few steps on one batch lower it."""
    _, unet = student
    inherit(unet, teacher)
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    names = self_attention_names(unet)
    with torch.no_grad(), features(teacher, [teacher_name(name) for name in names]) as theirs:
        call(teacher)
    optimizer = torch.optim.Adam(unet.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        with features(unet, names) as mine:
            call(unet)
            loss = feature_loss(mine, theirs, LAYERS)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first = unet.get_submodule(names[0]).to_q.weight
    assert float(first.grad.abs().sum()) > 0
    assert losses[-1] < 0.8 * losses[0]
