import numpy as np
import pytest
import torch

from koala_nb.core.catalog import data_folder

pytest.importorskip("koala_nb.nano.render", reason="koala_nb/nano is absent")
if not (data_folder() / "world" / "sprites.json").is_file():
    pytest.skip("data/world is absent", allow_module_level=True)

from koala_nb.nano.render import Renderer, draw_sign, read_sheet, to_pixels  # noqa: E402
from koala_nb.nano.world import BACKGROUNDS, KINDS, SIZES, STYLES, Thing, World, load_json  # noqa: E402

WORLD = World(30)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def sheets():
    return {style: read_sheet(style) for style in STYLES}


@pytest.fixture(scope="module", params=[64, 128])
def render(request, sheets):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("koala_nb.nano.render.read_sheet", sheets.get)
        return Renderer(request.param, WORLD.things())


@pytest.fixture(scope="module")
def scenes():
    """Four scenes of each kind."""
    return [WORLD.scene(seed, kind) for kind in KINDS for seed in range(4)]


def ground(scene):
    return torch.tensor(BACKGROUNDS[scene.background], dtype=torch.float32)[:, None, None]


# --- the sheets -------------------------------------------------------------------------------


def test_each_sheet_has_twenty_occupations_in_eighteen_forms(sheets):
    entries = load_json("sprites.json")["sprites"]
    forms = {}
    for row, entry in enumerate(entries):
        if entry["kind"] == "person":
            forms.setdefault(entry["name"], {})[entry["presentation"], entry["tone"]] = row
    assert len(forms) == 20
    for style, sheet in sheets.items():
        for occupation, rows in forms.items():
            assert len(rows) == 18
            drawings = {sheet[row].tobytes() for row in rows.values()}
            assert len(drawings) == 18, (style, occupation)


def test_every_sprite_is_drawn_and_differs_between_the_styles(sheets):
    n = len(load_json("sprites.json")["sprites"])
    for sheet in sheets.values():
        assert sheet.shape[1:] == (128, 128, 4)
        seen = (sheet[:n, ..., 3] > 127).mean((1, 2))
        assert seen.min() > 0.01 and not sheet[n:].any()
    assert all((sheets["noto"][row] != sheets["twemoji"][row]).any() for row in range(n))


# --- boxes, masks, pixels ---------------------------------------------------------------------


def test_boxes_masks_and_pixels_agree(render, scenes):
    images = render(scenes)
    assert images.shape == (len(scenes), 3, render.image_size, render.image_size)
    for scene, image in zip(scenes, images):
        masks = render.masks(scene)
        assert len(masks) == len(scene.placed)
        for mask, placed in zip(masks, scene.placed):
            left, top, right, bottom = (edge * render.scale for edge in placed.box)
            inside = torch.zeros_like(mask, dtype=torch.bool)
            inside[top:bottom, left:right] = True
            assert not mask[~inside].any()
            assert 0.02 < float(mask[inside].mean()) <= 1
        empty = (masks == 0).all(0)
        seen = torch.from_numpy(to_pixels(image[None])[0]).permute(2, 0, 1).float()
        same = (seen == ground(scene)).all(0)
        assert empty.any() and same[empty].all()
        assert not same.all()


def test_a_scene_is_its_sprites_over_its_background(render, scenes):
    """Pasted again, one by one, by hand."""
    for scene, image in zip(scenes, render(scenes)):
        canvas = (ground(scene) / 255).repeat(1, render.image_size, render.image_size)
        for placed in scene.placed:
            sprite = render.sprite(placed.thing, scene.style, placed.size)
            left, top, right, bottom = (edge * render.scale for edge in placed.box)
            below = canvas[:, top:bottom, left:right]
            canvas[:, top:bottom, left:right] = below * (1 - sprite[3:]) + sprite[:3]
        torch.testing.assert_close(image, canvas * 2 - 1, rtol=0, atol=1e-6)


def test_a_batch_equals_its_scenes_one_by_one(render, scenes):
    assert torch.equal(render(scenes), torch.cat([render([scene]) for scene in scenes]))


def test_the_sizes_show_the_same_scene(sheets, scenes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("koala_nb.nano.render.read_sheet", sheets.get)
        things = [placed.thing for scene in scenes for placed in scene.placed]
        small, large = (Renderer(size, things)(scenes) for size in (64, 128))
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    assert float((shrunk - small).abs().mean()) < 0.02
    assert float((shrunk.roll(1, 0) - small).abs().mean()) > 0.2  # of other scenes


@pytest.mark.parametrize("device", DEVICES)
def test_scenes_are_drawn_on_the_chosen_device(device, sheets, monkeypatch, scenes):
    monkeypatch.setattr("koala_nb.nano.render.read_sheet", sheets.get)
    things = [placed.thing for scene in scenes for placed in scene.placed]
    drawn = Renderer(64, things, device)(scenes)
    assert drawn.device.type == device
    torch.testing.assert_close(drawn.cpu(), Renderer(64, things)(scenes), rtol=0, atol=1e-6)


def test_other_image_sizes_are_refused():
    with pytest.raises(ValueError, match="multiples of 64 pixels: 100"):
        Renderer(100, [])


def test_a_missing_sheet_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KOALA_NB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"noto\.webp"):
        read_sheet("noto")


# --- signs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_words_fit_their_signs(style):
    """The ink of every word, held out or not, stays on the board, and no two signs are alike."""
    blank = np.asarray(draw_sign("", style)).astype(int)
    words = World(balanced=True).words
    drawn = [np.asarray(draw_sign(word, style)) for word in words]
    assert len({picture.tobytes() for picture in drawn}) == len(words)
    for word, picture in zip(words, drawn):
        ink = np.argwhere((picture.astype(int) != blank).any(-1))
        assert len(ink) > 10, word
        (top, left), (bottom, right) = ink.min(0), ink.max(0)
        assert 128 * 0.27 < top and bottom < 128 * 0.73 and 6 < left and right < 121, word
        assert (picture[..., 3] == blank[..., 3]).all(), word


def test_signs_have_several_fonts_and_sizes():
    boards = {style: np.asarray(draw_sign("koala", style)) for style in STYLES}
    dark = {style: board[..., :3].max(-1) < 100 for style, board in boards.items()}
    assert len({shape.tobytes() for shape in dark.values()}) == 3
    assert {len(word) for word in WORLD.words} >= set(range(1, 10))


def test_a_sign_can_be_placed(render):
    scene = WORLD.scene(3, "sign")
    other = next(word for word in WORLD.words if word != scene.placed[0].thing.name)
    size = scene.placed[0].size
    first, second = (
        render.sprite(Thing("sign", word), scene.style, size)
        for word in (scene.placed[0].thing.name, other)
    )
    assert first.shape == (4, SIZES[size] * render.scale, SIZES[size] * render.scale)
    assert not torch.equal(first, second)
