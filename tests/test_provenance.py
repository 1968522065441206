import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from koala_nb.core import files as pv

JSON = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
RECORDS = st.dictionaries(st.text(), JSON | st.text(), max_size=5)


@given(record=RECORDS)
def test_png_record_round_trip(record, tmp_path_factory):
    path = tmp_path_factory.mktemp("png") / "a.png"
    pv.save_png(Image.new("RGB", (4, 4)), path, record)
    assert pv.read_record(path) == record
    assert pv.is_whole_png(path) == bool(record)


@given(records=st.lists(RECORDS, max_size=4))
def test_lines_round_trip(records, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "records.jsonl"
    pv.write_lines(path, records)
    assert pv.read_lines(path) == records


def test_same_image_and_record_same_bytes_and_pixels(tmp_path):
    image, record = Image.new("RGB", (8, 8), "blue"), {"prompt": "<script>考拉 🐨\n\"'"}
    one = pv.save_png(image, tmp_path / "1.png", record).read_bytes()
    assert one == pv.save_png(image, tmp_path / "2.png", record).read_bytes()
    assert one != pv.save_png(image, tmp_path / "3.png", {"seed": 2}).read_bytes()
    with Image.open(tmp_path / "1.png") as saved:
        assert saved.tobytes() == image.tobytes()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = pv.write_atomic(tmp_path / "a.txt", b"old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        pv.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_damaged_png_is_not_whole(tmp_path):
    path = pv.save_png(Image.new("RGB", (64, 64)), tmp_path / "a.png", {"seed": 1})
    assert pv.is_whole_png(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert not pv.is_whole_png(path)
    path.write_bytes(b"no picture at all")
    with pytest.raises(ValueError, match="not a readable PNG"):
        pv.read_record(path)
    Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(ValueError, match="no koala_nb record"):
        pv.read_record(path)


def test_environment_names_what_is_installed():
    found = pv.environment()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    json.dumps(found)


def test_only_temporary_files_of_its_own_are_removed(tmp_path):
    kept = {".a.tmp", ".notes.of.2024.tmp", "a.0badc0de.tmp", ".a.0badc0de.bak"}
    for name in (*kept, ".a.png.0badc0de.tmp"):
        (tmp_path / name).touch()
    pv.clean_temporary(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_lines_of_other_tools_are_read_and_their_faults_named(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_bytes('\ufeff{"a": "one\u2028two"}\r\n\n{"a": "\u0085"}\n'.encode())
    assert pv.read_lines(path) == [{"a": "one\u2028two"}, {"a": "\u0085"}]
    path.write_text('{"a": 1}\n' + '{"a":' * 100_000)
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 2, is not JSON: maximum recursion"):
        pv.read_lines(path)
    path.write_bytes('\ufeff{"a": 1}'.encode())
    assert pv.read_json(path) == {"a": 1}
    path.write_text("[" * 100_000)
    with pytest.raises(OSError, match="is not readable JSON .maximum recursion"):
        pv.read_json(path)
