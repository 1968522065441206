"""What an image came from: versions, atomic files, and records inside PNGs."""

import hashlib
import importlib.metadata
import io
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

PNG_KEY = "koala_nb"
EMBEDDED_BANNER = "Embedded teaching model: says nothing about KOALA-Lightning-700M"
_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")


def banner(domain: str) -> str | None:
    """The sentence that goes with every result of this domain, or None where none is needed."""
    return EMBEDDED_BANNER if domain == "emoji-world" else None


@cache
def versions() -> dict[str, str | None]:
    """Versions of Python, this package and the libraries that draw; None where not installed."""
    from koala_nb import __version__

    found: dict[str, str | None] = {"koala_nb": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = None
    return found


def environment(device: str | None = None) -> dict[str, Any]:
    """Versions, platform, device, threads and git commit, as a flat dictionary for reports.

    `device` is the one that was worked on; by default the best available.
    """
    import torch

    best = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.backends.mps.is_available():
        best = "mps"
    return {
        **versions(),
        "platform": platform.platform(),
        "device": device_name(device or best),
        "threads": torch.get_num_threads(),
        "commit": git_commit(),
    }


def device_name(device: str) -> str:
    """The device's own name: that of the GPU, "Apple GPU" or that of the processor family."""
    import torch

    kind = torch.device(device)
    if kind.type == "cuda":
        return torch.cuda.get_device_name(kind)
    if kind.type == "mps":
        return "Apple GPU"
    return f"CPU {platform.machine()}"


@cache
def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, or None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def short(value: Any) -> str:
    """A value as in code, in at most 60 characters, for an error's sentence."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def write_atomic(path: str | os.PathLike[str], data: bytes, *, sync: bool = False) -> Path:
    """Write a file whole or not at all: a hidden temporary file beside it, then a rename.

    With `sync` the bytes are on the disk before the rename, so that a power cut cannot empty it.
    OSError that names the file where it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        _remove(temporary)
        if not isinstance(error, OSError):
            raise
        why = error.strerror or str(error) or type(error).__name__
        raise OSError(
            f"{path} cannot be written ({why}): free some space, or write to another folder."
        ) from error
    return path


def _remove(file: Path) -> None:
    try:
        file.unlink()
    except OSError:  # it was never made
        pass


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. OSError, in a sentence, where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{folder} cannot be made ({error.strerror}): name a folder that you can write to."
        ) from error


def clean_temporary(folder: str | os.PathLike[str]) -> None:
    """Remove what an interrupted `write_atomic` left in a folder (not in its subfolders).

    What another process that is there, or another machine in the last hour, writes is left alone.
    """
    for left in Path(folder).glob(".*.tmp"):
        if _is_left(left):
            left.unlink(missing_ok=True)


def _is_left(file: Path) -> bool:
    import psutil

    machine, _, number = file.name.removesuffix(".tmp").rpartition(".")[2].rpartition("-")
    try:
        if machine == _machine():
            return int(number) == os.getpid() or not psutil.pid_exists(int(number))
        return time.time() - file.stat().st_mtime > 3600
    except (OSError, ValueError):  # gone by now, or none of ours
        return False


@cache
def _machine() -> str:
    """A short name of this machine for file names."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write one JSON value, indented, atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False)
    return write_atomic(path, f"{text}\n".encode("ascii"), sync=True)


def write_lines(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> Path:
    """Write records as JSON lines, atomically."""
    lines = [json.dumps(r, ensure_ascii=True, allow_nan=False) + "\n" for r in records]
    return write_atomic(path, "".join(lines).encode("ascii"), sync=True)


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read JSON lines. Raises ValueError naming the file and line that is no JSON object."""
    try:
        lines = Path(path).read_bytes().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8: {error}.") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}.") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}, is not a JSON object: {short(record)}.")
        records.append(record)
    return records


def save_png(image: "Image.Image", path: str | os.PathLike[str], record: dict[str, Any]) -> Path:
    """Write a PNG with its record in a text chunk named "koala_nb", atomically.

    The same image and record give the same bytes with the same versions of Pillow and zlib.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(PNG_KEY, json.dumps(record, ensure_ascii=True, allow_nan=False))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return write_atomic(path, buffer.getvalue())


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record inside a PNG. Raises ValueError where the file holds none or is no PNG."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(PNG_KEY)
    except (UnidentifiedImageError, SyntaxError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable PNG: {error}.") from None
    if text is None:
        raise ValueError(f"{path} holds no koala_nb record: it was not made by koala_nb.")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise ValueError(f"{path} holds a damaged koala_nb record.") from None


def is_whole_png(path: str | os.PathLike[str]) -> bool:
    """Whether a file exists, ends as a PNG ends, and holds a record."""
    try:
        with open(path, "rb") as file:
            file.seek(-12, os.SEEK_END)
            ending = file.read()
        return ending[4:8] == b"IEND" and bool(read_record(path))
    except (OSError, ValueError):
        return False
