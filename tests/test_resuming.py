"""A run's folder that is taken up again: nothing in it is trusted for its name."""

import shutil
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_kills import contents
from test_pipelines import cut_short

from koala_nb import generate, load
from koala_nb.core import files as provenance
from koala_nb.generation import run_folder
from koala_nb.generation.generate import Drawing
from koala_nb.generation.plan import Settings, make_plan

SMALL = {"height": 64, "width": 64, "steps": 2, "guidance": 3.5}


def test_a_setting_that_only_the_old_folder_has_refuses_it(loaded, tmp_path):
    generate(loaded, "a", out=tmp_path, **SMALL)
    settings = provenance.read_json(tmp_path / "settings.json")
    provenance.write_json(tmp_path / "settings.json", {**settings, "eta": 0.5})
    with pytest.raises(ValueError, match=r"other settings: eta was 0.5, now None. Use another"):
        generate(loaded, "a", out=tmp_path, **SMALL)


@pytest.mark.parametrize("place", ["images", "records"])
def test_a_link_out_of_the_folder_is_not_followed(loaded, tmp_path, place):
    generate(loaded, "a", out=tmp_path / "run", **SMALL)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(tmp_path / "run" / place, ignore_errors=True)
    (tmp_path / "run" / place).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"run/{place} is a link to another place: remove it."):
        generate(loaded, "a", out=tmp_path / "run", **SMALL)
    assert not list(elsewhere.iterdir())


def huge_header(path):
    """Let a PNG say that it is 60,000 pixels wide and high."""
    data = bytearray(path.read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)


def record_of_a_list(path):
    with Image.open(path) as image:
        info = PngInfo()
        info.add_text("koala_nb", "[1]")
        image.save(path, pnginfo=info)


def another(**changed):
    def write(path):
        with Image.open(path) as image:
            image.load()
        provenance.save_png(image, path, provenance.read_record(path) | changed)

    return write


DAMAGES = {"huge header": huge_header, "list": record_of_a_list, "cut short": cut_short}
DAMAGES |= {"prompt": another(prompt="a dog"), "seed": another(seed=7)}
DAMAGES |= {"steps": another(steps=3), "parts": another(parts="unet 0123")}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_image_is_not_trusted_for_its_name(loaded, tmp_path, damage):
    generate(loaded, "a", seeds=range(2), out=tmp_path, **SMALL)
    before = contents(tmp_path)
    DAMAGES[damage](tmp_path / "images" / "00000-a-1.png")
    assert contents(tmp_path) != before
    generate(loaded, "a", seeds=range(2), out=tmp_path, **SMALL)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", ["{0}/alice/my-koala", "alice/my-koala", "./alice/my-koala"])
def test_a_run_tells_the_models_name_and_not_its_place(snapshot, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(snapshot, "alice/my-koala")
    pipe = load(place.format(tmp_path), device="cpu")
    run = generate(pipe, "a", out=tmp_path / "run", **SMALL)
    assert (run.records.system[0], run.records.source[0]) == ("my-koala", "my-koala")
    assert run.records.revision[0].startswith("weights-")
    with Image.open(run.folder / run.records.file[0]) as image:
        record = image.text["koala_nb"].encode()
    for content in (record, *contents(run.folder).values()):
        assert b"alice" not in content


def test_an_image_that_was_damaged_later_is_named(loaded, tmp_path):
    run = generate(loaded, "a", out=tmp_path, **SMALL)
    file = tmp_path / "images" / "00000-a-0.png"
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:-2000]), huge_header):
        damage(file)
        with pytest.raises(OSError, match="00000-a-0.png cannot be read .*call the same"):
            run.images[0]


@pytest.fixture(scope="module")
def chunks(loaded, tmp_path_factory):
    """A run of two chunks as many workers write it, its plans and its settings."""
    pytest.importorskip("pyarrow")
    out = tmp_path_factory.mktemp("chunks") / "run"
    plan = make_plan(loaded, ["a"], range(2), Settings(batch_size=1, height=64, width=64, steps=1))
    drawing, parts = Drawing(loaded, plan), run_folder.split_plan(plan)
    with run_folder.open_folder(out, drawing.folder_settings(), plan):
        records = drawing.write_missing(out, progress=False)
        for number, part in enumerate(parts):
            run_folder.write_chunk(out, number, [records[r] for r in part.requests])
    return out, parts, drawing.folder_settings()


@pytest.mark.parametrize("damage", [*DAMAGES, "records"])
def test_a_chunk_of_many_workers_is_not_trusted_for_its_names(chunks, tmp_path, damage):
    whole, parts, settings = chunks
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    assert run_folder.unfinished_chunks(folder, parts, settings) == []
    if damage == "records":
        cut_short(folder / "records" / "00001.parquet")
        with pytest.raises(ValueError, match="00001.parquet is damaged .*: call the same"):
            run_folder.open_run(folder)
    else:
        DAMAGES[damage](folder / "images" / "00000-a-1.png")
    assert run_folder.unfinished_chunks(folder, parts, settings) == [1]


@pytest.mark.parametrize(
    "file",
    ["../x.png", "/x.png", "images/../x.png", "images\\x.png", "x.png", "images/x.txt", None],
)
def test_a_record_of_an_image_elsewhere_is_refused(loaded, tmp_path, file):
    generate(loaded, "a", out=tmp_path, **SMALL)
    (record,) = provenance.read_lines(tmp_path / "records.jsonl")
    provenance.write_lines(tmp_path / "records.jsonl", [record | {"file": file}])
    with pytest.raises(ValueError, match="which is no image of this run: remove its records"):
        run_folder.open_run(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"seeds": 3}, {"seeds": [3]}])
def test_settings_without_seeds_are_one_sentence(tmp_path, settings):
    provenance.write_json(tmp_path / "settings.json", settings)
    with pytest.raises(OSError, match="settings.json does not say the seeds of a run: restore it"):
        run_folder.read_records(tmp_path)
