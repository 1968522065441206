import re
from contextlib import contextmanager

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock

from koala_nb.core import catalog
from koala_nb.core.catalog import SDXL_UNET
from koala_nb.distillation import losses as kd
from koala_nb.distillation.losses import FeatureHooks, Weights, feature_pairs, init_from_teacher
from koala_nb.distillation.similarity import outputs
from koala_nb.models.unet import build_unet, costs, teacher_name

# SDXL-Base's and KOALA's structures, narrow.
TINY = {**SDXL_UNET, "sample_size": 8, "block_out_channels": (8, 16, 32), "norm_num_groups": 4}
TINY |= {"attention_head_dim": [1, 2, 4], "cross_attention_dim": 16, "addition_time_embed_dim": 8}
TINY["projection_class_embeddings_input_dim"] = 64
STUDENTS = ("koala-lightning-1b", "koala-lightning-700m")
NOISE = torch.ones(1, 4, 8, 8)


def build(system=None):
    torch.manual_seed(0 if system is None else 1)
    changes = {} if system is None else catalog.find(system).unet  # what differs from SDXL-Base's
    return UNet2DConditionModel(**{**TINY, **changes})


@pytest.fixture(scope="module")
def teacher():
    """A narrow SDXL. Leave it as it is."""
    return build().requires_grad_(False).eval()


@pytest.fixture(params=STUDENTS)
def student(request):
    return request.param, build(request.param)


@pytest.fixture
def small():
    """A narrow KOALA-700M, with weights of its own."""
    return build("koala-lightning-700m")


@contextmanager
def distilling(student, teacher, pairs=None, weights=None):
    """What computes a student's loss and its parts, against noise of ones."""
    pairs = feature_pairs(student, teacher) if pairs is None else pairs
    distiller = kd.Distiller(student, teacher, pairs, weights or Weights())
    yield lambda *more: distiller.losses(lambda: call(student), inputs(), NOISE, *more)
    assert not distiller.student_hooks.outputs
    distiller.remove()
    assert count_hooks(student) == count_hooks(teacher) == 0


def inputs():
    generator = torch.Generator().manual_seed(2)
    return {
        "sample": torch.randn(1, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 5, 16, generator=generator),
        "added_cond_kwargs": {"text_embeds": torch.ones(1, 16), "time_ids": torch.ones(1, 6)},
    }


def call(unet):
    return unet(**inputs()).sample


def count_hooks(unet):
    return sum(len(module._forward_hooks) for module in unet.modules())


# --- the map of weights -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("up_blocks.0.resnets.1.conv1.weight", "up_blocks.0.resnets.2.conv1.weight"),
        ("up_blocks.1.attentions.1.proj_in.bias", "up_blocks.1.attentions.2.proj_in.bias"),
        ("up_blocks.0.attentions.1.transformer_blocks.1.attn1", "up_blocks.0.attentions.2."),
        ("up_blocks.2.resnets.1", "up_blocks.2.resnets.2"),
        ("up_blocks.2.resnets.0.norm1.weight", None),
        ("down_blocks.1.resnets.0.conv1.weight", None),
        ("mid_block.resnets.1.conv1.weight", None),
    ],
)
def test_names_of_the_teacher(name, expected):
    assert teacher_name(name).startswith(expected or name)
    assert teacher_name(name, 1, 1) == teacher_name(name, 2, 2) == name


@pytest.mark.parametrize("system, pairs", zip(STUDENTS, (30, 21)))
def test_the_map_fits_the_real_systems(system, pairs):
    """Without weights: SDXL-Base against KOALA-1B and KOALA-700M."""
    assert len(feature_pairs(build_unet(system), build_unet("sdxl-base"))) == pairs


def test_a_student_inherits_every_tensor(teacher, student):
    _, unet = student
    init_from_teacher(unet, teacher)
    source = teacher.state_dict()
    for name, tensor in unet.state_dict().items():
        assert torch.equal(tensor, source[teacher_name(name)]), name
    # Not by reference: training the student leaves the teacher alone.
    with torch.no_grad():
        unet.conv_in.weight.add_(1)
    assert not torch.equal(unet.conv_in.weight, teacher.conv_in.weight)


def test_the_teacher_inherited_by_itself_is_the_teacher(teacher):
    twin = UNet2DConditionModel(**TINY).eval()
    init_from_teacher(twin, teacher)
    pairs = feature_pairs(twin, teacher)
    assert len(pairs) == 70 and all(name == other for name, other in pairs.items())
    with distilling(twin, teacher) as losses:
        parts = losses()[1]
    assert float(parts["out"]) == float(parts["feat"]) == 0


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
        init_from_teacher(unet, teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


# --- which modules are paired -----------------------------------------------------------------

# Pairs by feature, KOALA-1B and KOALA-700M.
COUNTS = dict.fromkeys(("self-attention", "cross-attention", "feed-forward"), (30, 21))
COUNTS |= {"residual": (11, 9), "block": (7, 6), "none": (0, 0)}


@pytest.mark.parametrize("kind", kd.FEATURES)
def test_pairs_of_every_feature_have_one_shape(teacher, student, kind):
    system, unet = student
    pairs = feature_pairs(unet, teacher, kind)
    assert len(pairs) == len(set(pairs.values())) == COUNTS[kind][STUDENTS.index(system)]
    shown, wanted = outputs(unet, inputs(), list(pairs)), outputs(teacher, inputs(), pairs.values())
    assert all(shown[name].shape == wanted[other].shape for name, other in pairs.items())
    expected = sum(((shown[m] - wanted[t]) ** 2).mean() for m, t in pairs.items())
    assert float(kd.feature_loss(shown, wanted, pairs)) == pytest.approx(float(expected), rel=1e-5)


def test_pairs_of_chosen_stages(teacher, student):
    system, unet = student
    pairs = feature_pairs(unet, teacher, stages=["up_blocks.0"])
    assert len(pairs) == (12 if system == "koala-lightning-1b" else 10)
    assert all(name.startswith("up_blocks.0.attentions.") for name in pairs)
    assert {other.split(".")[3] for other in pairs.values()} == {"0", "2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "selfattention"}, "Unknown feature 'selfattention'. Did you mean 'self-attent"),
        ({"stages": ["up_block.0"]}, "Unknown stage of the student 'up_block.0'. Did you mean"),
        ({"stages": ["mid_block"]}, "Unknown stage of the student 'mid_block'"),
        ({"stages": ["down_blocks.0"]}, "No self-attention modules in down_blocks.0: choose other"),
    ],
)
def test_a_wrong_choice_is_one_clear_error(teacher, small, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        feature_pairs(small, teacher, **options)


# --- features ---------------------------------------------------------------------------------

NAME = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


def attention_names(unet):
    return [name for name, _ in unet.named_modules() if name.endswith(".attn1")]


def test_features_are_the_modules_outputs_and_change_nothing(teacher):
    attention, made = teacher.get_submodule(NAME), []
    forward = attention.forward
    attention.forward = lambda *a, **k: made.append(forward(*a, **k)) or made[-1]
    try:
        with torch.no_grad(), FeatureHooks(teacher, [NAME]) as hooks:
            watched = call(teacher)
            assert hooks.collect()[NAME] is made[0]
    finally:
        del attention.forward
    with torch.no_grad():
        assert torch.equal(watched, call(teacher))


def test_hooks_go_away_on_exit_on_error_and_after_a_bad_name(teacher):
    names = attention_names(teacher)
    with FeatureHooks(teacher, names):
        assert count_hooks(teacher) == 70
    assert count_hooks(teacher) == 0
    with pytest.raises(ZeroDivisionError), FeatureHooks(teacher, names):
        _ = 1 / 0
    assert count_hooks(teacher) == 0
    with pytest.raises(AttributeError, match="attn9"), FeatureHooks(teacher, [names[0], "attn9"]):
        pass
    assert count_hooks(teacher) == 0


def test_nothing_is_kept_outside_start_and_collect(teacher):
    with torch.no_grad(), FeatureHooks(teacher, [NAME]) as hooks:
        call(teacher)
        hooks.collect()
        call(teacher)
        assert not hooks.outputs
        hooks.start()
        with pytest.raises(RuntimeError, match="was not called"):
            hooks.collect()


def test_checkpointing_does_not_change_features_or_gradients(teacher):
    """The backward pass calls the modules again: what was taken stays, and nothing is kept."""
    results = []
    for checkpointing in (False, True):
        unet = build("koala-lightning-700m").train()
        init_from_teacher(unet, teacher)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        with distilling(unet, teacher) as losses:
            total, parts = losses()
            total.backward()
        assert float(parts["feat"]) > 0
        results.append([total.detach(), *(p.grad for p in unet.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("regional, stages", [(False, ()), (True, ()), (True, ("up_blocks.1",))])
def test_features_of_a_compiled_student_are_the_same(teacher, small, regional, stages):
    with distilling(small, teacher, feature_pairs(small, teacher, stages=stages)) as losses:
        plain, _ = losses()
        parts = [m for m in small.modules() if isinstance(m, BasicTransformerBlock)]
        for part in parts if regional else [small]:
            part.compile(backend="aot_eager")
        for _ in range(2):
            torch.testing.assert_close(losses()[0], plain)


def test_features_under_mixed_precision_give_a_float32_loss(teacher, small):
    init_from_teacher(small, teacher)
    with distilling(small, teacher) as losses:
        exact, _ = losses()
        with torch.autocast("cpu", torch.bfloat16):
            rounded, _ = losses()
    assert rounded.dtype == torch.float32
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.02)


def test_the_loss_weighs_its_parts(teacher, small):
    by_weights = []
    for weights in (Weights(), Weights(2.0, 3.0, 0.5), Weights(1.0, 0.0, 0.0)):
        with distilling(small, teacher, weights=weights) as losses:
            total, parts = losses()
        assert set(parts) == {"task", "out", "feat"} and all(float(p) > 0 for p in parts.values())
        expected = sum(getattr(weights, name) * float(part) for name, part in parts.items())
        assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
        by_weights.append(parts)
    assert by_weights[0] == by_weights[1] == by_weights[2]


def test_a_sample_weight_weighs_the_task_alone(teacher, small):
    with distilling(small, teacher, {}) as losses:
        (_, plain), (_, twice) = losses(), losses(torch.tensor([2.0]))
    assert float(twice["task"]) == pytest.approx(2 * float(plain["task"]))
    assert twice["out"] == plain["out"] and float(plain["feat"]) == 0


def test_the_feature_loss_trains_the_student(teacher, student):
    """The loss reaches the student's weights, and a few steps on one batch lower it."""
    _, unet = student
    init_from_teacher(unet, teacher)
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    optimizer, values = torch.optim.Adam(unet.parameters(), 1e-3), []
    with distilling(unet, teacher, weights=Weights(0.0, 0.0, 1.0)) as losses:
        for _ in range(6):
            loss, _ = losses()
            values.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    first = unet.get_submodule(next(iter(feature_pairs(unet, teacher)))).to_q.weight
    assert float(first.grad.abs().sum()) > 0
    assert values[-1] < 0.8 * values[0]


# --- what it costs ----------------------------------------------------------------------------


def test_the_cost_of_a_step(teacher, small):
    (kept, forward), (frozen, of_teacher) = (
        costs(unet)[["parameters", "flops"]].sum() for unet in (small, teacher)
    )
    for checkpointing, passes in ((False, 3), (True, 4)):
        cost = kd.training_cost(small, teacher, 2, checkpointing=checkpointing)
        operations = 2 * (passes * forward + of_teacher) / 1e12
        assert list(cost.values()) == pytest.approx([kept * 20e-9, frozen * 2e-9, operations])
