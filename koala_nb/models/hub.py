"""From a name to a folder of safetensors whose weights are checked: the hub's cache, a download,
or a folder as it is.

`diffusers.DiffusionPipeline.download` is not used: it also fetches a repository's code, and leaves
out the configuration of a part whose weights come from elsewhere.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koala_nb.core import catalog
from koala_nb.core import files as records
from koala_nb.core.files import short

if TYPE_CHECKING:
    from torch import nn

WEIGHTED = ("unet", "vae", "text_encoder", "text_encoder_2")
NEEDED = {
    "scheduler": ("scheduler_config.json",),
    "tokenizer": ("vocab.json", "merges.txt"),  # or tokenizer.json
    "tokenizer_2": ("vocab.json", "merges.txt"),
}
LOOK = 8  # values of each tensor that are compared with its file
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack")


class WeightsMissing(OSError):
    """Weights or files that a load needs are not there; the message says what to do."""


@dataclass
class Source:
    """A folder to load from and where it came from."""

    folder: Path
    source: str
    revision: str | None
    variant: str | None
    index: dict[str, Any]
    facts: dict[str, Any]  # of the optional koala_nb.json: name, domain, parts_from
    notes: list[str] = field(default_factory=list)
    weights: dict[str, list[Path]] = field(default_factory=dict)  # part -> files to load
    donor: "Source | None" = None  # parts whose folders are missing here come from there


def components(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The parts that a model_index.json names: part -> (library, class)."""
    parts = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2}
    return {k: (v[0], v[1]) for k, v in parts.items() if v[0] and v[1]}


def files_needed(
    listing: Iterable[str], index: dict[str, Any], variant: str | None, skip: str | None = None
) -> tuple[list[str], list[str]]:
    """Which of a repository's files a pipeline needs, and which parts lack the variant.

    Only safetensors in one precision, configurations and tokenizers: no ONNX, OpenVINO or Flax
    copies, no single-file checkpoints, no parts that model_index.json does not name, no weights
    of the part `skip`.
    """
    needed, lacking = [], []
    files = sorted(listing)
    for part in components(index):
        inside = [f for f in files if f.startswith(f"{part}/") and f.count("/") == 1]
        needed += [f for f in inside if f.endswith((".json", ".txt", ".model"))]
        weights = [f for f in inside if f.endswith(".safetensors") and part != skip]
        plain = [f for f in weights if "." not in Path(f).name.removesuffix(".safetensors")]
        chosen = [f for f in weights if f".{variant}" in Path(f).name] if variant else []
        if weights and variant and not chosen:
            lacking.append(part)
        needed += chosen or plain
    return ["model_index.json", *needed], lacking


def from_hub(
    repository: str,
    revision: str | None,
    variant: str | None,
    local_files_only: bool | None,
    skip: str | None = None,
) -> Source:
    """Find a repository's snapshot in the hub's cache, downloading what the pipeline needs.

    Without a network, with HF_HUB_OFFLINE=1 or with `local_files_only`, only the cache counts.
    Raises WeightsMissing where the snapshot, or a file of it, cannot be had.
    """
    folder, online = None, not local_files_only
    if online:
        folder, online = _download(repository, revision, variant, skip)
    folder = folder or _cached(repository, revision)
    source = from_folder(folder, variant, repository, skip)
    source.revision = folder.name
    return source


def _download(
    repository: str, revision: str | None, variant: str | None, skip: str | None
) -> tuple[Path | None, bool]:
    """The downloaded snapshot, or (None, False) where the hub cannot be reached."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub import errors as hub
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    try:
        info = HfApi().model_info(repository, revision=revision)
        # By name, not by hash, so that the cache also learns which commit "main" is.
        index_file = hf_hub_download(repository, "model_index.json", revision=revision)
        index = read_json(Path(index_file))
        listing = [s.rfilename for s in info.siblings or []]
        files, _ = files_needed(listing, index, variant, skip)
        if not all((Path(index_file).parent / f).is_file() for f in files):
            enable_progress_bars()  # gigabytes: nobody should wait in the dark
            snapshot_download(repository, revision=revision, allow_patterns=files)
    except hub.GatedRepoError:
        raise WeightsMissing(
            f"{repository} asks for consent: accept its terms on https://huggingface.co/"
            f"{repository} and run `hf auth login`."
        ) from None
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.EntryNotFoundError) as e:
        if isinstance(e, hub.LocalEntryNotFoundError):
            return None, False
        what = f"{repository}{f' at revision {revision}' if revision else ''}"
        raise WeightsMissing(
            f"The hub has no diffusers pipeline {what}: check the spelling, or log in with "
            "`hf auth login` if it is private."
        ) from None
    except (hub.OfflineModeIsEnabled, hub.HTTPError, ConnectionError):
        return None, False
    finally:
        disable_progress_bars()
    return Path(index_file).parent, True


def _cached(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except HFValidationError:
        raise ValueError(f"{short(repository)} is not a hub id of the form owner/name.") from None
    except LocalEntryNotFoundError as error:
        if snapshot := getattr(error, "snapshot_path", None):  # lacks files that may not be needed
            return Path(snapshot)
        raise WeightsMissing(missing_sentence(repository, revision)) from None


def missing_sentence(repository: str, revision: str | None) -> str:
    """What to do where a repository is neither in the cache nor within reach."""
    from huggingface_hub.constants import HF_HUB_CACHE

    known = next((s for s in catalog.SYSTEMS if repository in (s.repository, s.parts)), None)
    size = f" (about {known.download_gb} GB)" if known and known.download_gb else ""
    at = f" at revision {revision}" if revision else ""
    pinned = f" --revision {revision}" if revision else ""
    files = '"*.json" "*/*.json" "*/*.txt" "*/*.fp16.safetensors"'
    return (
        f"The weights of {repository}{at} are not in the hub's cache ({HF_HUB_CACHE}) and the hub "
        f"cannot be reached: with a network run `hf download {repository}{pinned} --include "
        f"{files}`{size}, or load an embedded model such as 'nano-koala'."
    )


def from_folder(
    folder: Path, variant: str | None, name: str | None = None, skip: str | None = None
) -> Source:
    """Check a diffusers folder and say how to load it.

    Raises WeightsMissing naming the first missing, damaged or foreign file. Falls back to no
    variant, with a note, where none is there.
    """
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise WeightsMissing(
            f"{folder} holds no model_index.json: give a folder saved by a diffusers pipeline."
        )
    index = read_json(index_file)
    if not {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} <= set(components(index)):
        raise WeightsMissing(f"{index_file} does not name the parts of a pipeline: restore it.")
    listing = [f.relative_to(folder).as_posix() for f in folder.glob("*/*")]
    files, lacking = files_needed(listing, index, variant, skip)
    facts = read_json(folder / "koala_nb.json") if (folder / "koala_nb.json").is_file() else {}
    for key in ("name", "domain", "parts_from"):
        if not isinstance(facts.get(key, ""), str):
            raise WeightsMissing(f"{folder / 'koala_nb.json'}: {key} is no text: correct it.")
    source = Source(folder, name or str(folder), None, variant, index, facts)
    if "parts_from" in facts:
        lender = folder / facts["parts_from"]
        source.donor = from_folder(lender, variant_in(lender))
    weights = [f for f in files if f.endswith(".safetensors")]
    if variant and not any(f".{variant}" in f for f in weights):
        source.variant = None
    if variant and lacking:
        source.notes.append(f"no {variant} files for {', '.join(lacking)}: full precision loaded")
    again = f"run `hf download {name}`" if name else "copy or download the folder again"
    for part in components(index):
        lent = source.donor and part != "unet" and not (folder / part).exists()
        if part != skip and not lent:
            inside = [f for f in weights if f.startswith(f"{part}/")]
            check_part(folder, part, inside, again)
            if part in WEIGHTED:
                source.weights[part] = [folder / file for file in inside]
    if name is None:
        source.revision = fingerprint([folder / f for f in weights], source.donor)
    return source


def variant_in(folder: Path) -> str | None:
    """The variant to ask a folder for: "fp16" where a part has no other weights, else None."""
    files = list(folder.glob("*/*.safetensors"))
    plain = {f.parent for f in files if ".fp16" not in f.name}
    return "fp16" if any(f.parent not in plain for f in files) else None


def check_part(folder: Path, part: str, weights: list[str], again: str) -> None:
    """Raise WeightsMissing where a part's files are missing or cut short, and say `again`."""
    from safetensors import SafetensorError, safe_open

    if not (folder / part).is_dir():
        raise WeightsMissing(f"{folder} lacks the part {part}: {again}.")
    for file in sorted((folder / part).glob("*.json")):
        read_json(file)
    whole = part.startswith("tokenizer") and (folder / part / "tokenizer.json").is_file()
    for name in () if whole else NEEDED.get(part, ()):
        if not (folder / part / name).is_file():
            raise WeightsMissing(f"{folder} lacks {part}/{name}: {again}.")
    if part not in WEIGHTED:
        return
    if not (folder / part / "config.json").is_file():
        raise WeightsMissing(f"{folder} lacks {part}/config.json: {again}.")
    if not weights:
        pickled = [f.name for f in (folder / part).glob("*") if f.suffix in PICKLES]
        why = f" (only {pickled[0]}, a pickle, which is never loaded)" if pickled else ""
        raise WeightsMissing(f"{folder} lacks safetensors weights in {part}/{why}: {again}.")
    for weight in weights:
        try:
            with safe_open(folder / weight, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise WeightsMissing(
                f"{folder / weight} is damaged or incomplete ({error}): delete it and {again}."
            ) from None


def fingerprint(weights: list[Path], donor: Source | None) -> str:
    """A short hash of the weights' names and bytes: names a folder's state."""
    digest = hashlib.sha256(str(donor.revision).encode() if donor else b"")
    for path in sorted(weights):
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.parent.name}/{path.name}:{checksum}".encode())
    return f"weights-{digest.hexdigest()[:16]}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises WeightsMissing where it is absent or damaged."""
    try:
        return records.read_json(path)
    except OSError as error:
        raise WeightsMissing(str(error)) from None


def single_file(repository: str, name: str, revision: str | None, local_only: bool | None) -> Path:
    """One file of a repository, from the cache or downloaded. Raises WeightsMissing."""
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(
            repository, name, revision=revision, local_files_only=bool(local_only)
        )
    except (hub.EntryNotFoundError, hub.OfflineModeIsEnabled, hub.HTTPError, ConnectionError):
        raise WeightsMissing(
            f"{name} of {repository} is not in the hub's cache and cannot be downloaded: with a "
            f"network run `hf download {repository} {name}`."
        ) from None
    return Path(path)


def load_whole(kind: Any, source: str | Path, **arguments: Any) -> Any:
    """Return transformers' `kind.from_pretrained(source)`, from safetensors alone, ready to infer.

    ValueError where the files lack a weight of the class, or hold it in another shape; OSError
    where there are none.
    """
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # not refused
    model, info = kind.from_pretrained(source, use_safetensors=True, **arguments)
    lacking = sorted(info["missing_keys"])
    lacking += sorted(str(key[0]) for key in info["mismatched_keys"])
    if lacking:
        raise ValueError(f"{_sentence(source, type(model).__name__, lacking)}: restore its files.")
    return model.eval()


def check_weights(model: "nn.Module", paths: Sequence[Path]) -> None:
    """Raise ValueError unless each parameter's first values stand in a tensor of `paths`.

    By value and number of elements, not by name: libraries rename and reshape what they load, and
    fill what a file lacks, or names otherwise, with random values and no more than a warning.
    """
    import torch
    from safetensors import safe_open

    beginnings: dict[int, list[torch.Tensor]] = {}  # by number of elements
    for file in paths:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                tensor = opened.get_tensor(key)
                beginnings.setdefault(tensor.numel(), []).append(tensor.flatten()[:LOOK])

    def stands(weight: "torch.Tensor") -> bool:
        if weight.is_meta:  # so diffusers leaves what it does not find
            return False
        first = weight.detach().flatten()[:LOOK].cpu()
        return any(
            torch.equal(first, b.to(first.dtype)) for b in beginnings.get(weight.numel(), ())
        )

    lacking = [name for name, weight in model.named_parameters() if not stands(weight)]
    if lacking:
        first = f"{paths[0].parent.name}/{paths[0].name}"
        raise ValueError(_sentence(first, type(model).__name__, lacking))


def _sentence(source: str | Path, kind: str, lacking: list[str]) -> str:
    return f"{source} lacks {len(lacking)} of the weights of {kind}, such as {lacking[0]}"
