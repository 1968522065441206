"""U-Nets counted from configurations: totals, costs, weight map, the card's table, figures."""

import re
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from koala_nb.core import catalog
from koala_nb.models import figures
from koala_nb.models import unet as architecture
from koala_nb.models.layout import ARM, WIDEST, unet_layouts
from koala_nb.models.unet import card_comparison

TOTALS = {  # parameters, transformer blocks, residual blocks
    "sdxl-base": (2_567_463_684, 70, 17),
    "koala-lightning-1.7b": (1_717_277_764, 46, 11),
    "koala-1b": (1_161_184_324, 30, 11),
    "koala-700m": (782_822_724, 21, 9),
    "sdm-v2.0": (865_910_724, 16, 22),
    "ssd-1b": (1_331_334_404, 34, 16),
    "segmind-vega": (745_225_604, 15, 16),
}
COUNTED = ["parameters", "transformer_blocks", "residual_blocks"]
REST = (7_320_004, 0, 0)
STAGES = {
    "sdxl-base": {
        "down_blocks.0": (5_432_000, 0, 2),
        "down_blocks.1": (60_105_600, 4, 2),
        "down_blocks.2": (757_404_160, 20, 2),
        "mid_block": (413_117_440, 10, 2),
        "up_blocks.0": (1_206_568_960, 30, 3),
        "up_blocks.1": (106_343_680, 6, 3),
        "up_blocks.2": (11_171_840, 0, 3),
    },
    "koala-1b": {
        "down_blocks.0": (3_176_960, 0, 1),
        "down_blocks.1": (31_077_120, 2, 1),
        "down_blocks.2": (236_401_920, 6, 1),
        "mid_block": (274_094_080, 6, 2),
        "up_blocks.0": (528_517_120, 12, 2),
        "up_blocks.1": (72_807_680, 4, 2),
        "up_blocks.2": (7_789_440, 0, 2),
    },
    "koala-700m": {
        "down_blocks.0": (3_176_960, 0, 1),
        "down_blocks.1": (31_077_120, 2, 1),
        "down_blocks.2": (201_646_080, 5, 1),
        "up_blocks.0": (459_005_440, 10, 2),
        "up_blocks.1": (72_807_680, 4, 2),
        "up_blocks.2": (7_789_440, 0, 2),
    },
}
# Two levels, so that every operation can be counted by hand.
TINY = {"sample_size": 8, "block_out_channels": (8, 16), "mid_block_type": None}
TINY |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "layers_per_block": 1}
TINY |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 4}
TINY |= {"transformer_layers_per_block": [1, 1], "cross_attention_dim": 12}
TINY |= {"attention_head_dim": 2, "use_linear_projection": True}


@pytest.fixture(scope="module")
def unets():
    return {name: architecture.build_unet(name) for name in TOTALS}


@pytest.fixture(scope="module")
def tiny():
    return architecture.build_unet(TINY)


@pytest.fixture(scope="module")
def student_costs(unets):
    return architecture.costs(unets["koala-700m"], (32, 32))


@pytest.fixture(scope="module")
def compared():
    return card_comparison().set_index(["quantity", "system"])


@pytest.mark.parametrize("name", TOTALS)
def test_totals_and_stages_to_the_last_parameter_and_block(name, unets):
    table = architecture.stages(unets[name])[COUNTED]
    *by_stage, (total, *counts) = table.itertuples()
    assert total == "total" and tuple(counts) == TOTALS[name]
    assert counts[0] == sum(p.numel() for p in unets[name].parameters())
    if name in STAGES:
        expected = {**STAGES[name], "rest": REST}
        assert {stage: tuple(row) for stage, *row in by_stage} == expected
        assert [stage for stage, *_ in by_stage] == list(expected)
    assert {p.device.type for p in unets[name].parameters()} == {"meta"}  # nothing is allocated


def test_blocks_stand_in_order_of_execution(unets):
    found = architecture.blocks(unets["sdxl-base"])
    of = {stage: list(part["block"]) for stage, part in found.groupby("stage")}
    assert of["mid_block"] == ["resnets.0", "attentions.0", "resnets.1"]
    pairs = [f"{kind}.{i}" for i in range(3) for kind in ("resnets", "attentions")]
    assert of["up_blocks.0"] == [*pairs, "upsamplers.0"]
    assert of["down_blocks.0"] == ["resnets.0", "resnets.1", "downsamplers.0"]
    assert found["parameters"].sum() == TOTALS["sdxl-base"][0]


def test_every_count_of_the_catalogue_is_that_of_its_configuration():
    written = {s.name: s.parameters for s in catalog.SYSTEMS if s.parameters and not s.embedded}
    assert len(written) >= 12
    built = {name: architecture.build_unet(name) for name in written}
    assert {name: architecture.parameters(unet) for name, unet in built.items()} == written
    assert built["koala-turbo-700m"].mid_block is None and built["ssd-1b"].mid_block is not None


def test_an_embedded_models_count_is_its_weights(monkeypatch, tmp_path, snapshot):
    if written := catalog.unet_parameters(catalog.find("nano-koala")):  # it is trained here
        counted = architecture.stages(architecture.build_unet("nano-koala")).loc["total"]
        assert counted["parameters"] == written
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nano-koala is not trained here"):
        architecture.build_unet("nano-koala")
    shutil.copytree(snapshot, tmp_path / "models" / "nano-koala")
    counted = architecture.stages(architecture.build_unet("nano-koala")).loc["total"]
    assert counted["parameters"] == catalog.unet_parameters(catalog.find("nano-koala")) > 0


def test_a_folder_is_read_and_what_has_no_configuration_refused(snapshot, tmp_path):
    assert architecture.build_unet(snapshot).config.block_out_channels == [8, 16, 16]
    with pytest.raises(FileNotFoundError, match="No U-Net configuration"):
        architecture.build_unet(tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'koala-lightning-700m'"):
        architecture.build_unet("koala-lightening-700")


def test_a_change_of_a_built_configuration_is_not_ignored(unets):
    # diffusers remembers which values were defaults and drops them, changed or not.
    changed = architecture.build_unet({**unets["sdxl-base"].config, "mid_block_type": None})
    assert changed.mid_block is None
    counted = architecture.stages(changed).loc["total", "parameters"]
    assert counted == TOTALS["sdxl-base"][0] - STAGES["sdxl-base"]["mid_block"][0]


@pytest.mark.parametrize(
    "name, stage, kind",
    [
        ("down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q", "down_blocks.1", 1),
        ("mid_block.attentions.0.transformer_blocks.0.attn2", "mid_block", 2),
        ("up_blocks.0.attentions.2.transformer_blocks.9.ff.net.2", "up_blocks.0", 3),
        ("up_blocks.2.resnets.0.conv1.weight", "up_blocks.2", 0),
        ("up_blocks.0.upsamplers.0.conv", "up_blocks.0", 4),
        ("conv_in", "rest", 4),
        ("time_embedding.linear_1", "rest", 4),
    ],
)
def test_stage_and_kind_by_name(name, stage, kind):
    assert architecture.stage_of(name) == stage
    assert architecture.kind_of(name) == architecture.KINDS[kind]


def test_other_parts_are_the_catalogues():
    parts = architecture.other_parts("koala-lightning-700m")
    assert parts == catalog.SHARED_PARAMETERS == architecture.other_parts("sdxl-base")
    assert set(architecture.other_parts("sdm-v2.0")) == {"vae", "text_encoder"}
    with pytest.raises(ValueError, match="small parts of its own"):
        architecture.other_parts("nano-koala")


def self_attention_flops(width, tokens):
    """Four linear maps, and two products of all tokens with all tokens."""
    return 2 * (4 * tokens * width**2 + 2 * tokens**2 * width)


def cross_attention_flops(width, tokens, words, word_width):
    """Query and out from the picture, key and value from the words, and two products."""
    linear = 2 * tokens * width**2 + 2 * words * word_width * width
    return 2 * (linear + 2 * tokens * words * width)


def feed_forward_flops(width, tokens):
    return 2 * tokens * (width * 8 * width + 4 * width * width)


def test_costs_of_a_tiny_unet_by_hand(tiny):
    table = architecture.costs(tiny, (8, 8), tokens=5)
    found = table.set_index(["stage", "kind"])["flops"]
    attentions = {"down_blocks.1": 1, "up_blocks.0": 2}  # all at 4 x 4 cells, 16 wide
    for stage, count in attentions.items():
        assert found[stage, "self-attention"] == count * self_attention_flops(16, 16)
        assert found[stage, "cross-attention"] == count * cross_attention_flops(16, 16, 5, 12)
        assert found[stage, "feed-forward"] == count * feed_forward_flops(16, 16)
    # Two convolutions of 3 x 3 at 8 x 8 cells, 8 wide, and the timestep's map of 32 to 8 numbers.
    assert found["down_blocks.0", "residual blocks"] == 2 * (2 * 64 * 9 * 8 * 8 + 32 * 8)
    # First and last convolution, and two maps of the timestep's embedding: 8 to 32, 32 to 32.
    assert found["rest", "other"] == 2 * (2 * 64 * 9 * 4 * 8 + 8 * 32 + 32 * 32)


def test_stages_add_up_to_torchs_own_total(tiny):
    table = architecture.costs(tiny, (16, 8), tokens=7)
    with FlopCounterMode(display=False) as counter:
        tiny(**architecture.meta_inputs(tiny, 16, 8, 7))
    assert table["flops"].sum() == counter.get_total_flops() > 0
    assert table["parameters"].sum() == sum(p.numel() for p in tiny.parameters())
    assert (table[["parameters", "flops"]] >= 0).all(axis=None)


def test_costs_agree_with_the_counts(student_costs, unets):
    counted = architecture.stages(unets["koala-700m"])["parameters"].drop("total")
    summed = student_costs.groupby("stage", sort=False)["parameters"].sum()
    assert summed.to_dict() == counted.to_dict()
    assert list(summed.index) == list(counted.index), "not in order"


def test_how_costs_grow_with_the_side(tiny):
    tables = {
        side: architecture.costs(tiny, (side, side)).set_index(["stage", "kind"])["flops"]
        for side in (8, 16, 32)
    }
    attention = [tables[side]["down_blocks.1", "self-attention"] for side in tables]
    forward = [tables[side]["down_blocks.1", "feed-forward"] for side in tables]
    assert forward[1] == 4 * forward[0] and forward[2] == 4 * forward[1]
    linear = [2 * 4 * (side // 2) ** 2 * 16**2 for side in tables]
    products = [whole - maps for whole, maps in zip(attention, linear)]
    assert products[1] == 16 * products[0] and products[2] == 16 * products[1]


def test_costs_default_to_the_configurations_size_and_need_no_weights(tiny):
    table = architecture.costs(UNet2DConditionModel.from_config(TINY))
    assert table.equals(architecture.costs(tiny, (8, 8)))


@pytest.mark.parametrize("latent", [(6, 8), (8, 6), (2, 2), (0, 0), (-4, 8)])
def test_a_size_that_cannot_be_halved_is_refused(latent, unets):
    with pytest.raises(ValueError, match="give multiples of 4"):
        architecture.costs(unets["koala-700m"], latent)


@pytest.mark.parametrize("name", ["koala-700m", "koala-1b"])
def test_every_shape_of_the_weight_map_matches(name, unets):
    student, teacher = unets[name].state_dict(), unets["sdxl-base"].state_dict()
    table = architecture.weight_map(unets[name], unets["sdxl-base"])
    assert list(table["student"]) == list(student)
    assert table["teacher"].is_unique
    for row in table.itertuples():
        assert student[row.student].shape == teacher[row.teacher].shape == row.shape


def test_eight_tensors_do_not_fit_by_name(unets):
    table = architecture.weight_map(unets["koala-700m"], unets["sdxl-base"])
    parts = ("norm1.weight", "norm1.bias", "conv1.weight", "conv_shortcut.weight")
    assert list(table[~table["by_name"]]["student"]) == [
        f"up_blocks.{i}.resnets.1.{part}" for i in (0, 1) for part in parts
    ]
    renamed = table[table["student"] != table["teacher"]]
    assert (len(renamed), renamed["by_name"].sum()) == (188, 180)


def test_a_student_from_elsewhere_is_refused(unets):
    with pytest.raises(ValueError, match=r"down_blocks\.0\.resnets\.1.* is none\. Choose"):
        architecture.weight_map(unets["sdxl-base"], unets["koala-700m"])
    with pytest.raises(ValueError, match=r"The student's .*counterpart.* Choose"):
        architecture.weight_map(unets["koala-700m"], unets["sdm-v2.0"])


def test_verdicts(compared):
    blocks = {"SDM-v2.0": "does not hold"}
    for system in ("SDXL-Base-1.0", "KOALA-1B", "KOALA-700M", "SDM-v2.0"):
        verdict = compared.xs(system, level="system").verdict
        assert verdict[["parameters", "mid block"]].tolist() == ["holds", "holds"]
        assert verdict["checkpoint"] == "holds"  # 4.33 and 2.92 GiB: `ls -lh` rounds up
        assert verdict["transformer blocks"] == blocks.get(system, "holds")
    note = compared.note.unstack("system")
    assert note.loc["parameters"].tolist() == ["", *["cut instead of rounded"] * 2, ""]
    assert (note.loc["checkpoint"].str[:14] == ["float32 in GiB"] * 2 + ["float32 in GB"] * 2).all()


def test_the_cards_numbers_are_recomputed(compared):
    assert compared.loc[("parameters", "KOALA-700M"), "computed"] == "782,822,724"
    sizes = compared.loc[("checkpoint", "KOALA-1B"), "computed"]
    assert "4.64 GB, 4.33 GiB" in sizes
    assert "3.13 GB, 2.92 GiB" in compared.loc[("checkpoint", "KOALA-700M"), "computed"]
    assert "[1, 1, 1, 0]" in compared.loc[("transformer blocks", "SDM-v2.0"), "computed"]
    assert "54.77 %" in compared.loc[("reduction", "KOALA-1B"), "computed"]
    small = compared.loc[("reduction", "KOALA-700M")]
    assert "69.51 %" in small["computed"] and "70 % when rounded" in small["note"]


def test_latencies_are_quoted_with_their_conditions(compared):
    quoted = compared.loc["latency (s)"]
    assert quoted["published"].to_dict()["KOALA-700M"] == 1.257
    assert set(quoted["computed"]) == {"not computed"}
    assert all("RTX 4090" in note and "768 x 768" in note for note in quoted["note"])


@pytest.fixture
def shown(monkeypatch):
    """What the figures would have displayed: a list of (figure, alternative text)."""
    calls = []
    monkeypatch.setattr(figures, "show", lambda figure, alt, **_: calls.append((figure, alt)))
    return calls


def test_the_picture_is_a_u(unets):
    teacher, student = unet_layouts([unets["sdxl-base"], unets["koala-700m"]])
    kept = [box for box in student.boxes if not box.cut]
    assert (len(teacher.boxes), len(kept), len(student.boxes)) == (93, 36, 93)
    assert (len(teacher.skips), len(student.skips)) == (9, 6)
    for start, end in teacher.skips + student.skips:
        assert start.x < 0 < end.x and ".resnets." in end.name
        assert start.y + start.height == pytest.approx(end.y + end.height)  # horizontal
    for unet, layout in ((unets["sdxl-base"], teacher), (unets["koala-700m"], student)):
        boxes = {box.name: box for box in layout.boxes if not box.cut}
        assert len(boxes) == sum(not box.cut for box in layout.boxes)
        for name, module in unet.named_modules():
            if type(module).__name__ in ("ResnetBlock2D", "BasicTransformerBlock"):
                box, level = boxes[name], int(re.findall(r"\d", name)[0])
                level = 3 if name[0] == "m" else level if name[0] == "d" else 2 - level
                assert box.y >= layout.levels[level] - 1e-6
                assert level == 3 or box.y < layout.levels[level + 1]
                channels = 1280 if level == 3 else (320, 640, 1280)[level]
                assert box.width == pytest.approx(WIDEST * channels / 1280)
                assert box.x == (0 if level == 3 else -ARM if name[0] == "d" else ARM)
        columns = {x: sorted(b.y for b in layout.boxes if b.x == x) for x in (-ARM, 0, ARM)}
        assert all(b - a > 1 for ys in columns.values() for a, b in zip(ys, ys[1:]))  # none overlap


@pytest.mark.parametrize("name", TOTALS)
def test_every_system_has_a_picture(unets, name, shown):
    figures.show_unets({name: unets[name]})
    ((figure, alt),) = shown
    _, transformers, residuals = TOTALS[name]
    assert f"{name}: {residuals} residual and {transformers} transformer blocks" in alt
    drawn = [p for p in figure.axes[0].patches if p.get_zorder() == 2 and p.get_linewidth() == 0]
    others = len(unet_layouts([unets[name]])[0].boxes) - residuals - transformers
    assert len(drawn) == residuals + 3 * transformers + others  # in three colours


def test_what_was_cut_is_counted(unets, shown):
    figures.show_unets({"SDXL": unets["sdxl-base"], "KOALA": unets["koala-700m"]})
    assert "6 skip connections, 57 blocks of the first are gone" in shown[0][1]
    figures.show_unets({"SDM": unets["sdm-v2.0"], "KOALA": unets["koala-700m"]})
    assert "SDM: 22 residual and 16 transformer blocks, 12 skip connections;" in shown[1][1]


def test_a_pipelines_picture_names_the_shapes_of_its_arrays(loaded, shown):
    figures.show_pipeline(loaded, (64, 64), "costs $5")
    ((figure, alt),) = shown
    written = " ".join(text.get_text() for text in figure.axes[0].texts)
    for shape in ("4 x 8 x 8", "3 x 64 x 64", "77 x 64", "32"):
        assert shape in alt and shape in written
    assert r"costs \$5" in written


def test_treemaps_have_one_scale(student_costs, unets, shown):
    large = architecture.costs(unets["sdxl-base"], (32, 32))
    figures.show_treemaps({"SDXL": large, "KOALA": student_costs})
    ((figure, alt),) = shown
    assert "KOALA: 783M parameters" in alt
    total = TOTALS["koala-700m"][0]
    for stage, (count, *_) in STAGES["koala-700m"].items():
        assert f"{stage} {count / total:.1%}" in alt
    tiles = [p for p in figure.axes[0].patches if p.get_facecolor()[3] > 0]
    counts = [(t["parameters"] > 0).sum() for t in (large, student_costs)]
    assert len(tiles) == sum(counts)
    areas = [p.get_width() * p.get_height() for p in tiles]
    ratio = sum(areas[: counts[0]]) / sum(areas[counts[0] :])
    assert ratio == pytest.approx(TOTALS["sdxl-base"][0] / total, rel=1e-6)


def test_changes_are_measured_against_the_first(monkeypatch):
    calls = []
    monkeypatch.setattr(figures, "show_images", lambda *given, **more: calls.append(given))
    picture = figures.as_image(torch.tensor([[0.0, 4.0]]))
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]
    black = Image.new("RGB", (2, 1))
    figures.show_changes({"whole": black, "up_blocks.0.resnets.1": picture}, "")
    assert calls[0][1] == ["whole", "up_blocks.0 resnets.1: 128"]


def test_cost_bars(student_costs, tiny, shown):
    figures.show_cost_bars({"KOALA": student_costs}, "At 256 px")
    figures.show_cost_bars({"tiny": architecture.costs(tiny)}, "Tiny")
    (_, alt), (_, small) = shown
    total = student_costs["flops"].sum() / 1e12
    assert f"KOALA, {total:.2f} in all" in alt and "At 256 px. TFLOP per stage" in alt
    for stage, part in student_costs.groupby("stage")["flops"].sum().items():
        assert f"{stage} {part / 1e12:.2f}" in alt
    assert re.search(r"Tiny\. GFLOP per stage\. tiny, 0\.\d\d in all", small)
