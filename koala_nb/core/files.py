"""What an image came from: versions, atomic files, and records inside PNGs."""

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml
from filelock import FileLock, Timeout

from koala_nb.core.devices import pick_device
from koala_nb.core.errors import first_line, short

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

Record = dict[str, Any]  # of JSON's plain values
ROOT = Path(__file__).resolve().parents[2]  # of the checkout that this package runs from
WHEEL_DATA = Path(__file__).resolve().parents[1] / "data"  # what a wheel holds of `data/`
REFERENCE = (WHEEL_DATA if WHEEL_DATA.is_dir() else ROOT / "data") / "reference"
LOCK = ".lock"  # of a folder that is being written
PNG_KEY, XMP_KEY = "koala_nb", "XML:com.adobe.xmp"  # the text chunks of a PNG
EMBEDDED_BANNER = "Embedded teaching model: says nothing about KOALA-Lightning-700M"
ESCAPED = re.compile(r"'+[=+\-@\t\r\n]")  # in a CSV: a text that a spreadsheet would compute
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
FORMULA = re.compile(rf"(?!{NUMBER}\Z)'*[=+\-@\t\r\n]")
_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")


def read_reference(name: str) -> Any:
    """Return a YAML file of `data/reference`, which belongs to the code: not of KOALA_NB_DATA."""
    return yaml.safe_load((REFERENCE / name).read_text("utf-8"))


def banner(domain: str) -> str | None:
    """The sentence that goes with every result of this domain, or None where none is needed."""
    return EMBEDDED_BANNER if domain == "emoji-world" else None


@cache
def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that draw."""
    from koala_nb import __version__

    known = {"koala_nb": __version__, "python": platform.python_version()}
    return known | {library: importlib.metadata.version(library) for library in _LIBRARIES}


def environment(device: str | None = None) -> Record:
    """Versions, platform, device (default: the best), threads and git commit, for reports."""
    import torch

    return {
        **versions(),
        "platform": platform.platform(),
        "device": device_name(device or pick_device().type),
        "threads": torch.get_num_threads(),
        "commit": git_commit(),
    }


def device_name(device: str) -> str:
    """The device's own name: that of the GPU, "Apple GPU" or that of the processor family."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return "Apple GPU" if device.startswith("mps") else f"CPU {platform.machine()}"


@cache
def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, or None."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def checked_path(value: object, what: str) -> Path:
    """Return a path. ValueError, which begins with `what`, for what is none or too long."""
    if isinstance(value, str | os.PathLike) and "\0" not in str(value):
        with suppress(OSError):
            Path(value).exists()
            return Path(value)
    raise ValueError(f"{what}, not {short(value)}.")


def write_atomic(
    path: str | os.PathLike[str], data: bytes, *, sync: bool = False, exclusive: bool = False
) -> Path:
    """Write a file whole or not at all; `sync` and `exclusive` as for `open_atomic`."""
    with open_atomic(path, sync=sync, exclusive=exclusive) as file:
        file.write(data)
    return Path(path)


@contextmanager
def open_atomic(
    path: str | os.PathLike[str], *, sync: bool = False, exclusive: bool = False
) -> Iterator[BinaryIO]:
    """Open a file to be written whole or not at all: a temporary file beside it, then a rename.

    With `sync` the bytes are on the disk before the rename, so that a power cut cannot empty it.
    With `exclusive` a file that is there stays. OSError that names the file where it cannot be
    written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if exclusive:
            _put_if_absent(temporary, path)
        else:
            os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # it was never made
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        why = error.strerror or str(error) or type(error).__name__
        raise OSError(
            f"{path} cannot be written ({why}): free some space, or write to another folder."
        ) from error


def _put_if_absent(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a disk without links
        os.replace(temporary, path)
        return
    temporary.unlink()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. OSError, in a sentence, where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be made ({error.strerror}): name a folder that you can write to."
        ) from error


def refuse_links(*places: Path) -> None:
    """Raise ValueError for the first place that is a link: it would be written elsewhere."""
    if link := next((place for place in places if place.is_symlink()), None):
        raise ValueError(f"{link} is a link to another place: remove it.")


@contextmanager
def locked(folder: Path, wait: float = 3.0) -> Iterator[None]:
    """Make a folder and hold its lock till any end of the process; ValueError if another has it."""
    make_folder(folder)
    lock = FileLock(folder / LOCK, timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} is being written by another process: wait for its end, or name another "
            "folder."
        ) from None
    except OSError as error:
        raise OSError(
            f"{folder} cannot be locked ({error.strerror or error}): name a folder that you can "
            "write to."
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            (folder / LOCK).unlink()
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process or thread holds a folder's lock."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except (Timeout, OSError):  # an OSError of another user's lock, which nobody here can try
        return True


def clean_temporary(folder: str | os.PathLike[str]) -> None:
    """Remove what an interrupted `open_atomic` left in a folder that is locked (no subfolders)."""
    for file in Path(folder).glob(f".*.{'[0-9a-f]' * 8}.tmp"):
        file.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any, *, exclusive: bool = False) -> Path:
    """Write one JSON value, indented, atomically; `exclusive` as for `open_atomic`."""
    text = json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False)
    return write_atomic(path, f"{text}\n".encode("ascii"), sync=True, exclusive=exclusive)


def read_json(path: str | os.PathLike[str]) -> Record:
    """A JSON object from a file. Raises OSError naming the file that is absent or damaged."""
    try:
        value = json.loads(Path(path).read_text("utf-8-sig"))  # other tools begin with a mark
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror}): restore it.") from None
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path} is not readable JSON ({error}): restore it.") from None
    if not isinstance(value, dict):
        raise OSError(f"{path} is not a JSON object: restore it.")
    return value


def write_lines(path: str | os.PathLike[str], records: Iterable[Record]) -> Path:
    """Write records as JSON lines, atomically."""
    lines = [json.dumps(r, ensure_ascii=True, allow_nan=False) + "\n" for r in records]
    return write_atomic(path, "".join(lines).encode("ascii"), sync=True)


def read_lines(path: str | os.PathLike[str]) -> list[Record]:
    """Read JSON lines, but for empty ones. ValueError naming the line that is no JSON object."""
    try:
        # Not `splitlines`: a text may hold U+2028, which ends no line of JSON.
        lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8: {error}.") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}.") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}, is not a JSON object: {short(record)}.")
        records.append(record)
    return records


def read_csv(
    path: str | os.PathLike[str], columns: Iterable[str] = (), **settings: Any
) -> "pd.DataFrame":
    """Read a CSV with a header by pandas, and see that it has `columns`.

    ValueError, naming the file, where it is absent, none, or lacks a column.
    """
    import pandas as pd

    try:
        if b"\0" in Path(path).read_bytes():  # the parser in C ends a text there
            settings["engine"] = "python"
        table = pd.read_csv(path, keep_default_na=False, **settings)
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name a CSV.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV with a header: {first_line(error)}.") from None
    if lacking := [name for name in columns if name not in table]:
        names = short(", ".join(table))
        raise ValueError(f"{path} has no column {lacking[0]!r}: it has {names}.")
    return table


def save_table(table: "pd.DataFrame", path: str | os.PathLike[str], *, sync: bool = False) -> Path:
    """Write a table as CSV, atomically; in a spreadsheet none of its texts is a formula.

    A text that begins as formulas do gets an apostrophe before it (OWASP, "CSV Injection"), which
    `read_table` takes off; numbers stay.
    """
    safe = _map_texts(table, lambda text: f"'{text}" if FORMULA.match(text) else text)
    texts = [*safe.columns, *(v for _, column in safe.items() for v in column.to_numpy())]
    # Before Python 3.13 the least quoting leaves a carriage return bare, which ends a line.
    bare = any("\r" in value for value in texts if isinstance(value, str))
    quoting = csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL
    text = safe.to_csv(index=False, lineterminator="\n", quoting=quoting)
    return write_atomic(path, text.encode(), sync=sync)


def read_table(
    path: str | os.PathLike[str], columns: Iterable[str] = (), **settings: Any
) -> "pd.DataFrame":
    """Read a CSV that `save_table` wrote, as `read_csv` does."""
    table = read_csv(path, columns, **settings)
    return _map_texts(table, lambda text: text[1:] if ESCAPED.match(text) else text)


def _map_texts(table: "pd.DataFrame", change: Callable[[str], str]) -> "pd.DataFrame":
    """Return a table with its texts and its columns' names changed; all else stays."""
    import pandas as pd

    def changed(value: object) -> object:
        return change(value) if isinstance(value, str) else value

    whole = table.set_axis([changed(name) for name in table.columns], axis=1)
    for number, (_, column) in enumerate(table.items()):
        old = column.to_list()
        new = [changed(value) for value in old]
        if any(a is not b for a, b in zip(old, new)):
            whole.isetitem(number, pd.Series(new, column.index, dtype=object))
    return whole


def save_png(
    image: "Image.Image", path: str | os.PathLike[str], record: Record, xmp: str = ""
) -> Path:
    """Write a PNG with its record in a text chunk named "koala_nb", and an XMP packet, atomically.

    The same arguments give the same bytes with the same versions of Pillow and zlib.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(PNG_KEY, json.dumps(record, ensure_ascii=True, allow_nan=False))
    if xmp:
        info.add_itxt(XMP_KEY, xmp)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return write_atomic(path, buffer.getvalue())


def read_record(path: str | os.PathLike[str], *, decode: bool = False) -> Record:
    """The record inside a PNG, its pixels read, too, by `decode`; ValueError for none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if decode:
                image.load()
            # Behind the pixels, which `text` decodes, where another program has written the file.
            text = image.info.get(PNG_KEY) or getattr(image, "text", {}).get(PNG_KEY)
    except (
        *(UnidentifiedImageError, SyntaxError, OSError, ValueError),
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(f"{path} is not a readable PNG: {error}.") from None
    if text is None:
        raise ValueError(f"{path} holds no koala_nb record: it was not made by koala_nb.")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a damaged koala_nb record.")
    return record


def is_whole_png(
    path: str | os.PathLike[str], expected: Record | None = None, *, decode: bool = True
) -> bool:
    """Whether a file is a whole PNG whose record has these values; `decode` reads its pixels."""
    try:
        with open(path, "rb") as file:
            file.seek(-12, os.SEEK_END)
            ending = file.read()
        record = read_record(path, decode=decode)
    except (OSError, ValueError):
        return False
    as_expected = all(record.get(key) == value for key, value in (expected or {}).items())
    return ending[4:8] == b"IEND" and bool(record) and as_expected
