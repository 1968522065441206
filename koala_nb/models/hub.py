"""From a name to a folder of safetensors whose weights are checked: the hub's cache, a download
by diffusers, or a folder as it is.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub  # whose functions are imported when they are called
from huggingface_hub import constants, errors
from safetensors import SafetensorError, safe_open

from koala_nb.core import catalog
from koala_nb.core import files as records
from koala_nb.core.catalog import System
from koala_nb.core.files import Record, short

if TYPE_CHECKING:
    import torch
    from torch import nn

Parts = frozenset[str]  # of a pipeline, by name
NO_PARTS: Parts = frozenset()
VARIANT = "fp16"  # asked for first; an older revision may lack it
CLASSES = ("StableDiffusionXLPipeline", "StableDiffusionPipeline")
WEIGHTED = ("unet", "vae", "text_encoder", "text_encoder_2")
TOKENIZER = ("vocab.json", "merges.txt")  # or tokenizer.json
NEEDED = {
    "scheduler": ("scheduler_config.json",),
    "tokenizer": TOKENIZER,
    "tokenizer_2": TOKENIZER,
    **dict.fromkeys(WEIGHTED, ("config.json",)),
}
RELEASE_UNET, RELEASE_VAE = "model.diffusion_model.", "first_stage_model."  # SDXL's own names
LOOK = 8  # values of each tensor that are compared with its file
UNREACHABLE = (errors.LocalEntryNotFoundError, errors.HTTPError, ConnectionError)
ABSENT = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack")


class WeightsMissing(OSError):
    """Weights or files that a load needs are not there; the message says what to do."""


class Revised:
    """What has a revision, which may still be computed by other threads when it is made."""

    _revision: "str | Callable[[], str] | None"

    @property
    def revision(self) -> str | None:
        """The commit, or a hash of the weights of a folder; waits until it is known."""
        if callable(self._revision):
            self._revision = self._revision()
        return self._revision

    def __getstate__(self) -> Record:
        return {**vars(self), "_revision": self.revision}  # threads cannot be copied


@dataclass
class Source(Revised):
    """A folder to load from and where it came from."""

    folder: Path
    source: str
    _revision: "str | Callable[[], str] | None"
    variant: str | None
    index: Record
    facts: Record  # of the optional koala_nb.json: name, domain, parts_from
    weights: dict[str, list[Path]]  # part -> files to load
    donor: "Source | None"  # parts whose folders are missing here come from there
    unet_file: Path | None = None  # of the U-Net's weights, or all, that are not in the folder
    notes: list[str] = field(default_factory=list)


def from_hub(
    repository: str, revision: str | None, local_files_only: bool | None, skip: Parts = NO_PARTS
) -> Source:
    """Find a repository's snapshot in the hub's cache, downloading what the pipeline needs.

    Offline only the cache counts. `skip`: parts left out. WeightsMissing where a file is missing.
    """
    folder = None if local_files_only else _download(repository, revision, skip)
    folder = folder or _cached(repository, revision)
    source = from_folder(folder, repository, skip)
    source._revision = folder.name
    return source


def with_unet_file(
    system: System, revision: str | None, local_files_only: bool | None, skip: Parts = NO_PARTS
) -> Source:
    """SDXL-Lightning is one U-Net file; its configuration and the other parts are SDXL-Base's."""
    parts = str(system.parts)
    source = from_hub(parts, None, local_files_only, skip | {"unet"})
    fetch_configs(source, {"unet"}, local_files_only)
    source.source = str(system.repository)
    file = _single_file(source.source, str(system.unet_file), revision, local_files_only)
    source.notes.append(f"all but the U-Net from {parts} at {source.revision}")
    source.unet_file, source._revision = file, file.parent.name
    return source


def fetch_configs(source: Source, parts: Iterable[str], local_files_only: bool | None) -> None:
    """See that the configurations of parts are there whose weights come from elsewhere."""
    for part in parts:
        if not (source.folder / part / "config.json").is_file():
            _single_file(source.source, f"{part}/config.json", source.revision, local_files_only)


def _download(repository: str, revision: str | None, skip: Parts) -> Path | None:
    """The snapshot with what the pipeline needs, or None where the hub cannot be reached."""
    from diffusers import DiffusionPipeline

    options = {"revision": revision, "variant": VARIANT, "use_safetensors": True}
    huggingface_hub.utils.enable_progress_bars()  # gigabytes: nobody should wait in the dark
    try:
        index = huggingface_hub.hf_hub_download(repository, "model_index.json", revision=revision)
        _check_class(repository, read_json(Path(index)))
        return Path(
            DiffusionPipeline.download(
                repository, **options, **dict.fromkeys(skip - {"quantization_config"})
            )
        )
    except (OSError, errors.EntryNotFoundError, errors.HTTPError) as error:
        # Where the hub fails, diffusers looks into the cache; that in vain, it tells the failure.
        of_hub = isinstance(error, (errors.HfHubHTTPError, errors.EntryNotFoundError))
        reason = error if of_hub else error.__cause__ or error
    finally:
        huggingface_hub.utils.disable_progress_bars()
    if isinstance(reason, errors.GatedRepoError):
        raise WeightsMissing(
            f"{repository} asks for consent: accept its terms on https://huggingface.co/"
            f"{repository} and run `hf auth login`."
        )
    if isinstance(reason, ABSENT) and not isinstance(reason, errors.LocalEntryNotFoundError):
        what = f"{repository}{f' at revision {revision}' if revision else ''}"
        raise WeightsMissing(
            f"The hub has no diffusers pipeline {what}: check the spelling, or log in with "
            "`hf auth login` if it is private."
        )
    if isinstance(reason, UNREACHABLE):
        return None
    raise WeightsMissing(f"{repository} cannot be downloaded: {str(reason)[:200]}") from reason


def _check_class(source: str, index: Record) -> None:
    name = index.get("_class_name")
    if name not in CLASSES:
        raise ValueError(
            f"{source} is a {short(name)}: this is no SDXL-type text-to-image pipeline; "
            f"{' and '.join(CLASSES)} can be loaded."
        )


def _cached(repository: str, revision: str | None) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True)
        )
    except errors.HFValidationError:
        raise ValueError(f"{short(repository)} is not a hub id of the form owner/name.") from None
    except errors.LocalEntryNotFoundError as error:
        if snapshot := getattr(error, "snapshot_path", None):  # lacks files that may not be needed
            return Path(snapshot)
        raise WeightsMissing(_out_of_reach(repository, revision)) from None


def unconfirmed(repository: str, revision: str) -> str:
    """Why a commit cannot be confirmed as one of the hub's, "" where it is confirmed.

    By the hub itself; where that is out of reach, by weights in its cache whose names are the
    hashes of their bytes, as a download leaves them.
    """
    try:
        known = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=10).sha
        return "" if known == revision else f"{repository} has no such commit on the hub"
    except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError):
        return f"{repository} has no such commit on the hub"
    except (errors.HTTPError, OSError):
        place = f"models--{repository.replace('/', '--')}/snapshots/{revision}"
    weights = list((Path(constants.HF_HUB_CACHE) / place).glob("**/*.safetensors"))
    if weights and all(records.sha256(file) == file.resolve().name for file in weights):
        return ""
    return "the hub cannot be reached, and its cache holds no weights downloaded at this commit"


def download_command(repository: str, revision: str | None = None) -> str:
    """Return the command that fetches what a pipeline needs of a repository."""
    pinned = f" --revision {revision}" if revision else ""
    patterns = ("*.json", "*/*.txt", f"*/*.{VARIANT}.safetensors")
    files = " ".join(f'--include "{pattern}"' for pattern in patterns)  # one pattern per option
    return f"hf download {repository}{pinned} {files}"


def _out_of_reach(repository: str, revision: str | None) -> str:
    known = next((s for s in catalog.SYSTEMS if repository in (s.repository, s.parts)), None)
    size = f" (about {known.download_gb} GB)" if known and known.download_gb else ""
    at, place = f" at revision {revision}" if revision else "", constants.HF_HUB_CACHE
    return (
        f"The weights of {repository}{at} are not in the hub's cache ({place}) and the hub "
        f"cannot be reached: with a network run `{download_command(repository, revision)}`{size}, "
        "or load an embedded model such as 'nano-koala'."
    )


def from_folder(folder: Path, repository: str | None = None, skip: Parts = NO_PARTS) -> Source:
    """Check a diffusers folder, one's own or a repository's snapshot, and say how to load it.

    Weights in half precision come first in a repository, those in full precision in a folder.
    Raises WeightsMissing naming the first missing, damaged or foreign file.
    """
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise WeightsMissing(
            f"{folder} holds no model_index.json: give a folder saved by a diffusers pipeline."
        )
    index = read_json(index_file)
    _check_class(repository or str(folder), index)
    parts = [k for k, v in index.items() if isinstance(v, list) and len(v) == 2 and all(v)]
    if not {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} <= set(parts):
        raise WeightsMissing(f"{index_file} does not name the parts of a pipeline: restore it.")
    facts = read_json(folder / "koala_nb.json") if (folder / "koala_nb.json").is_file() else {}
    for key in ("name", "domain", "parts_from"):
        if not isinstance(facts.get(key, ""), str):
            raise WeightsMissing(f"{folder / 'koala_nb.json'}: {key} is no text: correct it.")
    donor = _lender(folder, folder / facts["parts_from"]) if "parts_from" in facts else None
    here = [p for p in parts if not (donor and p != "unet" and not (folder / p).exists())]
    variant = VARIANT if repository or _lacks_full_precision(folder) else None
    weights = {part: _weights(folder / part, variant) for part in here if part not in skip}
    again = f"run `hf download {repository}`" if repository else "copy or download the folder again"
    for part, files in weights.items():
        _check_part(folder, part, files, again)
    files = [file for part in weights.values() for file in part]
    revision = None if repository else start_fingerprint(files, donor)
    loaded_as = variant if any(f".{variant}" in file.name for file in files) else None
    weighted = {part: weights[part] for part in WEIGHTED if part in weights}
    place = repository or str(folder)
    source = Source(folder, place, revision, loaded_as, index, facts, weighted, donor)
    full = [p for p, fs in weights.items() if fs and not any(f".{variant}" in f.name for f in fs)]
    if variant and full:
        source.notes.append(f"no {variant} files for {', '.join(full)}: full precision loaded")
    return source


def _lender(borrower: Path, folder: Path) -> Source:
    """The folder that lends its parts. WeightsMissing for one that borrows: no chains, no rings."""
    facts = folder / "koala_nb.json"
    if facts.is_file() and "parts_from" in read_json(facts):
        raise WeightsMissing(
            f"{borrower / 'koala_nb.json'}: parts_from names {folder}, which borrows parts itself: "
            "name the folder that holds them."
        )
    return from_folder(folder)


def _lacks_full_precision(folder: Path) -> bool:
    files = list(folder.glob("*/*.safetensors"))
    full = {file.parent for file in files if f".{VARIANT}" not in file.name}
    return any(file.parent not in full for file in files)


def _weights(part: Path, variant: str | None) -> list[Path]:
    """A part's safetensors of a variant; those of none where it has none of it."""
    files = sorted(part.glob("*.safetensors"))
    chosen = [file for file in files if variant and f".{variant}" in file.name]
    return chosen or [file for file in files if "." not in file.stem]


def _check_part(folder: Path, part: str, weights: list[Path], again: str) -> None:
    if not (folder / part).is_dir():
        raise WeightsMissing(f"{folder} lacks the part {part}: {again}.")
    for file in sorted((folder / part).glob("*.json")):
        read_json(file)
    whole = part.startswith("tokenizer") and (folder / part / "tokenizer.json").is_file()
    for name in () if whole else NEEDED.get(part, ()):
        if not (folder / part / name).is_file():
            raise WeightsMissing(f"{folder} lacks {part}/{name}: {again}.")
    if part in WEIGHTED and not weights:
        pickled = [f.name for f in (folder / part).glob("*") if f.suffix in PICKLES]
        why = f" (only {pickled[0]}, a pickle, which is never loaded)" if pickled else ""
        raise WeightsMissing(f"{folder} lacks safetensors weights in {part}/{why}: {again}.")
    for file in weights:
        try:
            with safe_open(file, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise WeightsMissing(
                f"{file} is damaged or incomplete ({error}): delete it and {again}."
            ) from None


def start_fingerprint(weights: list[Path], donor: Source | None) -> Callable[[], str]:
    """Begin to hash weights in threads beside; the result waits and names a folder's state."""
    hashing = ThreadPoolExecutor(2, "weights")  # of this call: a fork carries no threads along
    checksums = [(path, hashing.submit(records.sha256, path)) for path in sorted(weights)]
    hashing.shutdown(wait=False)

    def wait() -> str:
        digest = hashlib.sha256(str(donor.revision).encode() if donor else b"")
        for path, checksum in checksums:
            digest.update(f"{path.parent.name}/{path.name}:{checksum.result()}".encode())
        return f"weights-{digest.hexdigest()[:16]}"

    return wait


def read_json(path: Path) -> Record:
    """A JSON object from a file. Raises WeightsMissing where it is absent or damaged."""
    try:
        return records.read_json(path)
    except OSError as error:
        raise WeightsMissing(str(error)) from None


def _single_file(repository: str, name: str, revision: str | None, local_only: bool | None) -> Path:
    try:
        path = huggingface_hub.hf_hub_download(
            repository, name, revision=revision, local_files_only=bool(local_only)
        )
    except (errors.EntryNotFoundError, *UNREACHABLE):
        raise WeightsMissing(
            f"{name} of {repository} is not in the hub's cache and cannot be downloaded: with a "
            f"network run `hf download {repository} {name}`."
        ) from None
    return Path(path)


def kind_of_file(path: Path) -> str:
    """Return what a file holds: `pipeline`, `unet` or `diffusers unet`; ValueError for others."""
    try:
        with safe_open(path, framework="pt") as opened:
            keys = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}).") from None
    if any(key.startswith(RELEASE_VAE) for key in keys):
        return "pipeline"
    if any(re.match(rf"({re.escape(RELEASE_UNET)})?input_blocks\.", key) for key in keys):
        return "unet"
    if any("lora" in key for key in keys):
        raise ValueError(f"{path} is a LoRA: load its model, then kn.load_lora(pipe, file).")
    if any(key.startswith("down_blocks.") for key in keys):
        return "diffusers unet"
    raise ValueError(f"{path} holds no U-Net and no checkpoint of the SDXL type.")


def load_whole(kind: Any, source: str | Path, **arguments: Any) -> Any:
    """Return transformers' `kind.from_pretrained(source)`; ValueError where weights are lacking."""
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

    starts: dict[int, list[torch.Tensor]] = {}  # by number of elements
    for file in paths:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                tensor = opened.get_tensor(key)
                starts.setdefault(tensor.numel(), []).append(tensor.flatten()[:LOOK])

    def stands(weight: "torch.Tensor") -> bool:
        if weight.is_meta:  # so diffusers leaves what it does not find
            return False
        first = weight.detach().flatten()[:LOOK].cpu()
        return any(torch.equal(first, b.to(first.dtype)) for b in starts.get(weight.numel(), ()))

    lacking = [
        name
        for name, weight in model.named_parameters()
        if type(weight) is torch.nn.Parameter  # a quantised one has other values
        and weight.dtype.is_floating_point
        and not stands(weight)
    ]
    if lacking:
        first = f"{paths[0].parent.name}/{paths[0].name}"
        raise ValueError(_sentence(first, type(model).__name__, lacking))


def check_names(model: "nn.Module", tensors: "dict[str, torch.Tensor]", file: Path) -> None:
    """Raise ValueError where tensors are not exactly a model's own, by name and shape."""
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    lacking = [n for n in wanted if n not in tensors or tensors[n].shape != wanted[n]]
    if lacking:
        raise ValueError(_sentence(file.name, type(model).__name__, lacking))
    if more := sorted(tensors.keys() - wanted):
        raise ValueError(f"{file.name} holds {more[0]}, which {type(model).__name__} has not")


def check_no_meta(parts: Record, file: Path) -> None:
    """Raise ValueError for a weight that a file lacks: diffusers leaves it on the meta device."""
    for part in parts.values():
        named = part.named_parameters() if hasattr(part, "named_parameters") else ()
        if lacking := [name for name, weight in named if weight.is_meta]:
            raise ValueError(_sentence(file.name, type(part).__name__, lacking))


def _sentence(source: str | Path, kind: str, lacking: list[str]) -> str:
    return f"{source} lacks {len(lacking)} of the weights of {kind}, such as {lacking[0]}"
