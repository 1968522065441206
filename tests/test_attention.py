"""Attention maps: exact, complete, and without a trace in the image or the pipeline."""

import inspect
import math
from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open

import koala_nb as kn
from koala_nb.attention.buffers import cell_grid, layer_grid
from koala_nb.attention.capture import CannotCapture
from koala_nb.attention.maps import AXES
from koala_nb.core.catalog import SYSTEMS, find, unet_parameters
from koala_nb.generation import generate
from koala_nb.generation.generate import ON_RETRY
from koala_nb.models.unet import build_unet, meta_inputs

PROMPT = "a red koala"
ALL_AXES = ("layer", "head", "step")
CROSS = 2 + 5 + 2 * 5 + 2 * 2  # layers of KOALA-700M's structure


def draw(pipe, prompt=PROMPT, *, steps=3, guidance=3.5, height=64, width=64, **more):
    more |= {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent"}
    noise = torch.Generator().manual_seed(0)
    return pipe(prompt, generator=noise, height=height, width=width, **more).images


def capture(pipe, drawing=None, **options):
    """What was captured of one call, and the call's latents."""
    with kn.capture_attention(pipe, **options) as attention:
        return attention, draw(pipe, **drawing or {})


class Reference:
    """What the layers were given, by plain hooks, and the maps from it in float64."""

    def __init__(self, unet, wanted="attn2"):
        self.modules = {n: m for n, m in unet.named_modules() if n.endswith(wanted)}
        self.inputs = {name: [] for name in self.modules}

    def __enter__(self):
        names = {module: name for name, module in self.modules.items()}

        def note(module, args, kwargs):
            text = kwargs.get("encoder_hidden_states")
            self.inputs[names[module]].append((args[0], args[0] if text is None else text))

        self.hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in names]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def logits(self, name, parts=slice(None)):
        """(passes, rows, heads, positions, tokens) in float64."""
        module = self.modules[name]
        weight_q, weight_k = (p.weight.double() for p in (module.to_q, module.to_k))
        logits = []
        for hidden, text in self.inputs[name]:
            q, k = hidden.double() @ weight_q.T, text.double()[..., parts] @ weight_k[:, parts].T
            q, k = (v.unflatten(-1, (module.heads, -1)).transpose(1, 2) for v in (q, k))
            logits.append(q @ k.mT / math.sqrt(q.shape[-1]))
        return torch.stack(logits).detach()

    def maps(self, name):
        return self.logits(name).softmax(-1)

    def conditional(self, name, shape):
        """The mean over passes and heads, of a single guided image's conditional branch."""
        return self.maps(name)[:, 1].mean((0, 1)).reshape(shape).numpy()


def unet_inputs(images):
    torch.manual_seed(0)
    pooled, ids = torch.randn(images, 32), torch.ones(images, 6)
    return {
        "sample": torch.randn(images, 4, 8, 8),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(images, 77, 64),
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids},
    }


def check_exact(pipe, **drawing):
    """Capture one image: no bit of it changes, and every layer's map is the reference's."""
    with Reference(pipe.unet) as truth:
        before = draw(pipe, **drawing)
    attention, after = capture(pipe, drawing)
    assert torch.equal(before, after) and set(attention.layers()) == set(truth.modules)
    for name in attention.layers():
        maps = attention.maps(layers=name)
        assert maps == pytest.approx(truth.conditional(name, maps.shape), abs=1e-6)
    return attention


# --- exact ------------------------------------------------------------------------------------

CASES = {
    "plain": {},
    "no guidance": {"guidance": 1.0},
    "negative prompt": {"negative_prompt": "a blue dog"},
    "several images per prompt": {"num_images_per_prompt": 2},
    "batch": {"prompt": [PROMPT, "two dogs", "a cat"]},
    "not square": {"height": 40, "width": 88},
    "one step": {"steps": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_maps_equal_float64_and_the_image_does_not_change(loaded, case):
    settings = CASES[case]
    with Reference(loaded.unet) as truth:
        before = draw(loaded, **settings)
    attention, after = capture(loaded, settings, keep_axes=ALL_AXES, guidance_branch="both")
    assert torch.equal(before, after)
    assert attention.images == len(before)
    assert attention.layers() == list(truth.modules) and len(truth.modules) == CROSS
    arrays = attention.arrays()
    halves = 1 if settings.get("guidance") == 1.0 else 2
    for name in truth.modules:
        maps = arrays[f"cross/{name}"]  # image, guidance branch, step, head, row, column, token
        expected = truth.maps(name).unflatten(1, (halves, -1)).permute(2, 1, 0, 3, 4, 5).numpy()
        assert abs(maps - expected.reshape(maps.shape)).max() < 1e-6
        assert abs(maps.sum(-1) - 1).max() < 1e-6
        assert maps.shape[4:6] in {
            tuple(-(-side // 2**level) for side in before.shape[2:]) for level in (1, 2)
        }


def test_means_are_means_of_what_was_kept_apart(loaded):
    apart, together, by_layer = (
        capture(loaded, {"num_images_per_prompt": 2}, keep_axes=keep)[0]
        for keep in (ALL_AXES, (), ("layer",))
    )
    name = apart.layers()[3]
    heads = [apart.maps(1, layers=name, head=h, step=s) for h in (0, 1) for s in range(3)]
    assert np.mean(heads, 0) == pytest.approx(by_layer.maps(1, layers=name), abs=1e-6)
    assert together.maps(1) == pytest.approx(apart.maps(1), abs=1e-6)
    assert by_layer.maps(1) == pytest.approx(apart.maps(1), abs=1e-6)
    assert together.layers() == ["4 x 4", "2 x 2"]
    inside = [n for n in apart.layers() if n.startswith("up_blocks.0.")]
    mean = np.mean([apart.maps(1, layers=n) for n in inside], 0)
    assert apart.maps(1, layers="up_blocks.0") == pytest.approx(mean, abs=1e-6)


def test_branches_are_the_prompt_and_the_negative_prompt(loaded):
    """Exchanging both prompts exchanges the guidance branches of the first step."""
    drawing = {"prompt": "a cat", "negative_prompt": "two dogs", "steps": 1}
    other = drawing | {"prompt": "two dogs", "negative_prompt": "a cat"}

    def branches(drawing):
        attention, _ = capture(loaded, drawing, keep_axes=(), guidance_branch="both")
        return [attention.maps(guidance_branch=b) for b in ("conditional", "unconditional")]

    (cat, no_dogs), (dogs, no_cat) = branches(drawing), branches(other)
    assert cat == pytest.approx(no_cat, abs=1e-6) and no_dogs == pytest.approx(dogs, abs=1e-6)
    assert abs(cat - no_dogs).max() > 1e-4
    attention, _ = capture(loaded, drawing, keep_axes=(), guidance_branch="unconditional")
    assert attention.maps(guidance_branch="unconditional") == pytest.approx(no_dogs, abs=1e-6)
    with pytest.raises(ValueError, match="'conditional' was not captured"):
        attention.maps()


def test_every_batch_of_a_run_has_its_images_in_order(loaded):
    settings = {"steps": 2, "guidance": 3.5, "height": 64, "width": 64, "progress": False}
    with kn.capture_attention(loaded, keep_axes=("step",)) as attention:
        kn.generate(loaded, ["a cat", "two dogs"], seeds=range(3), batch_size=2, **settings)
    assert attention.images == 6
    with kn.capture_attention(loaded, keep_axes=("step",)) as alone:
        kn.generate(loaded, "two dogs", seeds=[1], **settings)
    for step in range(2):
        maps = attention.maps(4, step=step)
        assert maps == pytest.approx(alone.maps(step=step), abs=1e-5)
        assert abs(maps - attention.maps(1, step=step)).max() > 3e-4
    assert {v.shape[0] for v in attention.arrays().values()} == {6}


def test_calls_of_the_unet_alone(loaded):
    """Without a pipeline call there is no guidance, whatever the pipeline drew before."""
    draw(loaded)
    inputs = unet_inputs(2)
    with torch.no_grad(), kn.capture_attention(loaded) as attention:
        loaded.unet(**inputs)
    with torch.no_grad(), Reference(loaded.unet) as truth:
        loaded.unet(**inputs)
    name = attention.layers()[0]
    expected = truth.maps(name).mean((0, 2))[1].reshape(4, 4, 77)
    assert attention.images == 2
    assert attention.maps(1, layers=name) == pytest.approx(expected.numpy(), abs=1e-6)
    assert loaded.do_classifier_free_guidance  # still what the pipeline's own call left


@pytest.mark.parametrize("trained", ["to_q", "to_k"])
def test_of_a_unet_in_training_no_graph_is_kept(fresh, trained):
    for name, weight in fresh.unet.named_parameters():
        weight.requires_grad_(trained in name)
    with kn.capture_attention(fresh) as attention:
        fresh.unet(**unet_inputs(1))
    assert not any(kept.requires_grad for kept in attention.batches[0].buffers.values())


# --- every kind of pipeline -------------------------------------------------------------------


def test_half_precision(fresh):
    fresh.to(torch.bfloat16)
    assert torch.equal(capture(fresh, keep_axes=ALL_AXES)[1], draw(fresh))
    with Reference(fresh.unet) as truth:
        draw(fresh, steps=1)
    attention, _ = capture(fresh, {"steps": 1}, keep_axes=("layer", "head"))
    name = attention.layers()[0]
    module, ((hidden, text),) = truth.modules[name], truth.inputs[name]
    with torch.no_grad():  # the maps of the very queries and keys that the model rounds to bf16
        q, k = module.to_q(hidden).double(), module.to_k(text).double()
    q, k = (v[1].unflatten(-1, (module.heads, -1)).transpose(0, 1) for v in (q, k))
    expected = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).mean(0).reshape(4, 4, 77)
    assert attention.maps(layers=name) == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.mark.parametrize("how", ["fused projections", "weights that wait elsewhere"])
def test_other_ways_to_compute_the_same(fresh, how):
    expected, plain = capture(fresh)
    if how == "fused projections":
        fresh.fuse_qkv_projections()
    else:
        accelerate.cpu_offload(fresh.unet, torch.device("cpu"))
        assert next(fresh.unet.parameters()).is_meta
    attention, after = capture(fresh, self_grid=2)
    assert torch.equal(after, draw(fresh)) and torch.allclose(plain, after, atol=1e-4)
    assert attention.maps() == pytest.approx(expected.maps(), abs=1e-5)


@pytest.mark.skipif(torch.__version__ < "2.9", reason="2.7 compiles each block anew")
@pytest.mark.parametrize("how", ["blocks", pytest.param("whole", marks=pytest.mark.long)])
def test_compiled(fresh, how):
    torch._dynamo.reset()
    if how == "blocks":
        fresh.unet.compile_repeated_blocks(fullgraph=True)
    else:
        fresh.unet = torch.compile(fresh.unet, fullgraph=True)
    unguided = draw(fresh, guidance=1.0)
    before = draw(fresh)
    with kn.capture_attention(fresh, guidance_branch="both") as attention:
        assert torch.equal(draw(fresh), before)  # fullgraph: a graph break would raise
        assert torch.equal(draw(fresh, guidance=1.0), unguided)
    assert torch.equal(draw(fresh), before)
    torch._dynamo.reset()
    with torch.compiler.set_stance("force_eager"), kn.capture_attention(fresh) as expected:
        draw(fresh)
        draw(fresh, guidance=1.0)
    assert attention.images == expected.images == 2
    for image in range(2):
        assert attention.maps(image) == pytest.approx(expected.maps(image), abs=1e-5)


def test_a_unet_with_a_mid_block(fresh):
    config = {**fresh.unet.config, "mid_block_type": "UNetMidBlock2DCrossAttn"}
    fresh.unet = UNet2DConditionModel.from_config(config).eval()
    attention = check_exact(fresh, height=88, width=40)
    order = [name.split("_")[0] for name in attention.layers()]
    assert order == sorted(order, key=("down", "mid", "up").index)  # as they run
    assert attention.maps(layers="mid_block").shape == (3, 2, 77)  # 11 x 5 latents


def test_a_model_of_one_text_encoder(fresh):
    """Stable Diffusion v2.0's kind, four resolutions."""
    torch.manual_seed(0)
    config = {"sample_size": 16, "block_out_channels": (8, 8, 16, 16), "layers_per_block": 1}
    config |= {"cross_attention_dim": 32, "attention_head_dim": [1, 1, 2, 2], "norm_num_groups": 4}
    unet = UNet2DConditionModel(**config, use_linear_projection=True).eval()
    parts = (fresh.vae, fresh.text_encoder, fresh.tokenizer, unet, fresh.scheduler, None, None)
    pipe = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    check_exact(pipe, height=128, width=128)
    with pytest.raises(CannotCapture, match="two text encoders"):
        capture(pipe, by_encoder=True)


def on_meta(system, fresh, size, **options):
    """The maps of one pass of a catalogued U-Net at full width: shapes without values."""
    unet = build_unet(system)
    pipe = SimpleNamespace(unet=unet, tokenizer=fresh.tokenizer)
    with torch.no_grad(), kn.capture_attention(pipe, **options) as attention:
        unet(**meta_inputs(unet, *size, 77))
    return attention.batches[0].buffers, [n for n, _ in unet.named_modules() if n.endswith("attn2")]


@pytest.mark.parametrize("system", [s.name for s in SYSTEMS if not s.embedded])
def test_every_catalogued_unet_has_all_its_layers_captured(fresh, system):
    if unet_parameters(find(system)) is None:
        pytest.skip("only its published figures are known")
    buffers, names = on_meta(system, fresh, (72, 104))
    assert {place[1] for place in buffers} == set(names) and len(names) >= 15
    assert {b.shape[2] for b in buffers.values()} <= {72 * 104 // 4**level for level in range(4)}


def test_memory_at_1024_pixels(fresh):
    """KOALA-700M: at most 12 MiB by layer and 1.6 MiB merged, however many steps."""
    for keep, most in (("layer",), 12), ((), 1.6):
        buffers, _ = on_meta("koala-lightning-700m", fresh, (128, 128), keep_axes=keep)
        assert 0 < sum(b.numel() * 4 for b in buffers.values()) <= most * 2**20


# --- more channels ----------------------------------------------------------------------------


def test_the_encoders_parts_add_up(loaded):
    with Reference(loaded.unet) as truth:
        draw(loaded, steps=2)
    attention, _ = capture(loaded, {"steps": 2}, by_encoder=True)
    name = attention.layers()[0]
    for channel, parts in (("logits", slice(None)), ("logits_clip_l", slice(0, 32))):
        expected = truth.logits(name, parts)[:, 1].mean((0, 1)).reshape(4, 4, 77).numpy()
        assert attention.maps(layers=name, channel=channel) == pytest.approx(expected, abs=2e-6)
    table = attention.encoder_split(PROMPT, layers=name)
    expected = truth.logits(name, slice(32, None))[:, 1].mean((0, 1, 2))[0].item()
    start = table.set_index("word").loc["[start]"]
    assert start.clip_g == pytest.approx(expected, abs=2e-6)
    assert start.clip_l + start.clip_g == pytest.approx(start.logit, abs=1e-9)
    logit, part = (
        attention.maps(layers=name, channel=channel)[..., 0].ravel().astype(float)
        for channel in ("logits", "logits_clip_l")
    )
    shared = np.cov(part, logit)
    assert start.spread_clip_l == pytest.approx(shared[0, 1] / shared[1, 1])
    assert start.clip_l == pytest.approx(part.mean())


def test_a_probe_of_the_prompt_is_the_prompt(loaded):
    attention, before = capture(loaded, probe=PROMPT)
    assert attention.maps(channel="probe") == pytest.approx(attention.maps(), abs=1e-6)
    attention, after = capture(loaded, probe="a dog")
    assert torch.equal(before, after)
    assert attention.words("a dog", channel="probe").texts[:2] == ["a", "dog"]
    assert abs(attention.maps(channel="probe") - attention.maps()).max() > 1e-4


@pytest.mark.parametrize("height, width, cells", [(64, 64, 2), (64, 64, 4), (48, 88, 3)])
def test_self_attention_between_cells(loaded, height, width, cells):
    size = {"height": height, "width": width, "steps": 2}
    with Reference(loaded.unet, "attn1") as truth:
        draw(loaded, **size)
    attention, _ = capture(loaded, size, layers="down_blocks.1", self_grid=cells)
    name = attention.layers("self")[1]
    grid = layer_grid(name, 3, height // 8, width // 8)
    full = truth.conditional(name, (math.prod(grid), math.prod(grid)))
    rows, columns = cell_grid(grid, cells)
    y, x = np.indices(grid)
    cell = ((y * rows // grid[0]) * columns + x * columns // grid[1]).ravel()
    by_key = np.stack([full[:, cell == j].sum(1) for j in range(rows * columns)], 1)
    expected = np.stack([by_key[cell == i].mean(0) for i in range(rows * columns)])
    maps = attention.maps(layers=name, channel="self")
    assert maps.shape == (rows, columns, rows * columns)
    assert maps.reshape(expected.shape) == pytest.approx(expected, abs=1e-6)


def test_clusters_find_what_looks_alike(loaded):
    attention, _ = capture(loaded, layers="down_blocks.1", self_grid=4)
    labels = attention.clusters(3)
    assert labels.shape == (4, 4) and set(labels.flat) <= {0, 1, 2}
    assert (labels == attention.clusters(3)).all()


# --- memory, errors, files --------------------------------------------------------------------


@pytest.mark.parametrize("keep", [(), ("layer",), ("layer", "head"), ALL_AXES])
def test_memory_is_predicted(loaded, keep):
    options = {"keep_axes": keep, "guidance_branch": "both", "self_grid": 2}
    options |= {"by_encoder": True, "probe": "a dog"}
    two = {"num_images_per_prompt": 2, "steps": 4}
    attention, _ = capture(loaded, two, **options)
    stored = sum(b.numel() * 4 for batch in attention.batches for b in batch.buffers.values())
    capture(loaded, two, **options, limit_gb=stored / 1e9)
    with pytest.raises(CannotCapture, match="These maps need .* GB, over the limit"):
        capture(loaded, two, **options, limit_gb=(stored - 1) / 1e9)


def test_no_more_than_a_gigabyte_unless_allowed():
    """Its documented default: `test_memory_is_predicted` says what a limit does."""
    assert inspect.signature(kn.capture_attention).parameters["limit_gb"].default == 1


def test_the_pipeline_is_restored(loaded):
    processors, first = dict(loaded.unet.attn_processors), loaded.unet.conv_in
    capture(loaded, {"steps": 1})
    with pytest.raises(RuntimeError, match="on the way"):
        with kn.capture_attention(loaded):
            draw(loaded, steps=1)
            raise RuntimeError("on the way")
    assert loaded.unet.attn_processors == processors and loaded.unet.conv_in is first


BAD = [
    ({"layers": "up_block.0"}, "No attention layer of this U-Net is, or is in, 'up_block.0'.*up_b"),
    ({"layers": ["up_blocks.0", "x"]}, "is in, 'x'"),
    ({"keep_axes": ("heads",)}, "keep_axes='heads': choose from layer, head, step"),
    ({"keep_axes": ("head",)}, "keep 'layer' too"),
    ({"guidance_branch": "first"}, "guidance_branch='first': use one of both, cond"),
    ({"self_grid": 1}, "self_grid=1: use 2 or more"),
    ({"self_grid": 3}, "self_grid=3 is finer than the 2 x 2 positions of down_blocks.2"),
    ({"probe": "x" * 80}, "has 82 tokens"),
]


@pytest.mark.parametrize("options, message", BAD)
def test_bad_options(loaded, options, message):
    before = dict(loaded.unet.attn_processors)
    with pytest.raises(ValueError, match=message):
        capture(loaded, {"steps": 1}, **options)
    assert loaded.unet.attn_processors == before


def test_what_cannot_be_exact_is_refused(fresh):
    module = fresh.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn2
    module.norm_q = torch.nn.LayerNorm(8)
    with pytest.raises(CannotCapture, match="up_blocks.0.*attn2 has norm_q"):
        capture(fresh)
    module.norm_q = None
    module.to_k.bias = torch.nn.Parameter(torch.zeros(module.to_k.out_features))
    with pytest.raises(CannotCapture, match="to_k has a bias"):
        capture(fresh, by_encoder=True)
    with pytest.raises(CannotCapture, match="Nothing was captured"):
        with kn.capture_attention(fresh):
            pass
    with pytest.raises(CannotCapture, match="image prompts"):
        with torch.no_grad(), kn.capture_attention(fresh):
            fresh.unet(**unet_inputs(1), encoder_attention_mask=torch.ones(1, 77))


def test_reading_what_is_not_there(loaded):
    attention, _ = capture(loaded)
    for chosen, message in (
        ({"image": 1}, "image=1: 1 images were captured"),
        ({"layers": "mid_block"}, "layers='mid_block' were not captured; these were: down_blocks"),
        ({"head": 0}, "head=0: 0 heads were kept"),
        ({"step": 0}, "step=0: 0 steps were kept"),
        ({"guidance_branch": "unconditional"}, "'unconditional' was not captured"),
        ({"channel": "self"}, "channel='self' was not captured; these were: cross"),
    ):
        with pytest.raises(ValueError, match=message):
            attention.maps(**chosen)


def test_arrays_are_saved_with_their_axes(loaded, tmp_path):
    attention, _ = capture(loaded, keep_axes=("layer", "step"))
    attention.save(tmp_path / "maps.safetensors")
    with safe_open(tmp_path / "maps.safetensors", "numpy") as file:
        assert all(axis in file.metadata()["axes"] for axis in AXES)
        for name, value in attention.arrays().items():
            assert (file.get_tensor(name) == value).all() and value.ndim == len(AXES)
    with kn.capture_attention(loaded) as attention:
        draw(loaded)
        draw(loaded, height=48)
    assert attention.images == 2 and attention.maps(1).shape[0] == 3
    with pytest.raises(ValueError, match="several sizes"):
        attention.arrays()


@pytest.mark.parametrize("where", ["decode", "unet"])
def test_an_attempt_that_ran_out_of_memory_leaves_no_maps(loaded, monkeypatch, where):
    """Memory that runs out once, in the middle of a run, after steps of the U-Net or before."""
    small = {"height": 64, "width": 64, "progress": False}
    prompts = [f"{n} koalas" for n in range(4)]
    with kn.capture_attention(loaded) as expected:
        for prompt in prompts:
            kn.generate(loaded, prompt, steps=2, **small)
    cases = {"decode": (generate, "decode", 2), "unet": (loaded.unet, "forward", 4)}
    owner, name, last = cases[where]
    real, calls = getattr(owner, name), []

    def scarce(*given, **named):
        calls.append(1)
        if len(calls) == last:
            raise torch.OutOfMemoryError("out of memory")
        return real(*given, **named)

    monkeypatch.setattr(owner, name, scarce)
    with kn.capture_attention(loaded) as attention:
        kn.generate(loaded, prompts[:2], steps=3, **small)  # another number of steps before
        calls.clear()
        run = kn.generate(loaded, prompts, steps=2, batch_size=2, **small)
    assert set(run.records.batch_halved_to.dropna()) == {1} and attention.images == 6
    for image in range(4):
        assert np.allclose(attention.maps(image + 2), expected.maps(image), atol=1e-5)
    assert not ON_RETRY
