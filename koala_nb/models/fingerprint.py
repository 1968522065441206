"""What a pipeline is made of when it draws: classes, configurations, options and every weight."""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from enum import Enum
from functools import cache

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from koala_nb.core.files import Record
from koala_nb.models.load import Pipeline

# What torch itself keeps of a module, and the names and places of files.
_SKIPPED = {*vars(nn.Module()), "config", "name_or_path", "vocab_file", "merges_file"} | {
    # Of a VAE: the settings say whether tiles count at this size (`vae_tiling`).
    "use_tiling", "use_slicing", "tile_sample_min_size", "tile_latent_min_size",
    "transformers_version", "dtype", "is_local", "tokenizer_file", "warnings_issued", "model_info",
}  # fmt: skip
# Other names with an underscore say how libraries keep and move weights.
_KEPT = {"_active_adapter", "_disable_adapters", "_diffusers_hook"}
_ROW = 2**15  # words of 8 bytes: what stays in a CPU's cache
_ROWS_ON_GPU = 2**7
_SMALL = 2**20  # bytes: smaller tensors are hashed together


def fingerprint(pipe: Pipeline) -> Record:
    """Describe a pipeline in JSON's plain values: another description may draw other images.

    Of each part: class, configuration, options (attributes of its modules, such as adapters'
    scales, FreeU's and attention processors), numbers of layers and tensors by type, and a hash of
    all weights by block. Of functions that were put in, only names are known.
    """
    free = {*pipe.components, "model_info"}
    options = {k: v for k, v in vars(pipe).items() if k[0] != "_" and k not in free}
    config = {k: v for k, v in pipe.config.items() if k not in free}
    whole = {"class": type(pipe).__name__, "config": _kept(config), "options": _kept(options)}
    parts = {k: _part(part) for k, part in sorted(pipe.components.items()) if part is not None}
    return {"pipeline": whole, **parts}


def summary(parts: Record) -> str:
    """Return a fingerprint in one line: a short hash for each part, and the scales of adapters."""
    names = [f"{name} {_digest(part)}" for name, part in parts.items()]
    scales = parts["unet"]["options"].get("scaling")
    return ", ".join([*names, f"adapters {json.dumps(scales)}"] if scales else names)


def _part(part: object) -> Record:
    if inner := getattr(part, "_orig_mod", None):
        return {**_module(inner), "compiled": True}
    if isinstance(part, nn.Module):
        return _module(part)
    config = getattr(part, "config", None) or getattr(part, "init_kwargs", {})
    about: Record = {"class": type(part).__name__, "config": _kept(config)}
    if isinstance(part, PreTrainedTokenizerBase):
        about["special_tokens"] = {k: str(v) for k, v in part.special_tokens_map.items()}
        about["vocabulary"] = [len(part), _vocabulary(part, len(part))]
    if isinstance(noise := getattr(part, "alphas_cumprod", None), torch.Tensor):
        about["alphas_cumprod"] = _weights({"": noise})
    return about


def _module(part: nn.Module) -> Record:
    options: dict[str, list[tuple[str, object]]] = defaultdict(list)
    tensors: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    layers: Counter[str] = Counter()

    def visit(module: nn.Module, name: str, block: str) -> None:
        module = getattr(module, "fingerprinted_as", module)
        layers[type(module).__name__] += 1
        for key, value in _options(module):
            options[key].append((name, value))
        for key, value in _tensors(module):
            tensors[block or key][f"{name}.{key}"] = value
        for key, child in module._modules.items():
            if child is not None:
                visit(child, f"{name}.{key}", block or key)

    visit(part, "", "")
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else part.config
    kinds = Counter(_kind(tensor) for block in tensors.values() for tensor in block.values())
    return {
        "class": type(part).__name__,
        "config": _kept(config),
        "options": {key: _shared(options[key]) for key in sorted(options)},
        "layers": dict(sorted(layers.items())),
        "tensors": dict(sorted(kinds.items())),
        "weights": {name: _weights(block) for name, block in tensors.items()},
    }


def _options(module: nn.Module) -> list[tuple[str, object]]:
    fields = vars(module)
    options = [(k, _plain(v)) for k, v in fields.items() if _counts(k, v)]
    if "forward" in fields and "_old_forward" in fields:  # Accelerate's, which moves weights
        options = [pair for pair in options if pair[0] != "forward"]
    if module.training:
        options.append(("training", True))
    if module._compiled_call_impl is not None:
        options.append(("compiled", True))
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    # Transformers adds its own at the first call, which change nothing.
    hooks = [hook for hook in hooks if not str(hook.__module__).startswith("transformers.")]
    return [*options, ("hooks", _plain(hooks))] if hooks else options


def _counts(key: str, value: object) -> bool:
    """Whether an attribute says how it is drawn; one that is off does not, later versions add."""
    if value is None or value is False or key in _SKIPPED or isinstance(value, torch.Tensor):
        return False
    return key[0] != "_" or key in _KEPT


def _kept(fields: Mapping[str, object], depth: int = 2) -> Record:
    return {k: _plain(v, depth) for k, v in sorted(fields.items()) if _counts(k, v)}


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return a module's own tensors; those that Accelerate keeps elsewhere come from there."""
    elsewhere = getattr(vars(module).get("_hf_hook"), "weights_map", None)
    fields = {k: v for k, v in vars(module).items() if isinstance(v, torch.Tensor)}
    registered = {**module._parameters, **module._buffers, **fields}
    return [
        (key, elsewhere[key] if elsewhere and tensor.is_meta else tensor)
        for key, tensor in registered.items()
        if tensor is not None
    ]


def _plain(value: object, depth: int = 2) -> object:
    """Turn a value into JSON's plain ones; an object into its class and attributes."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(np.array(value)) if value.dtype.kind in "biufc" else str(value)
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, torch.Tensor):
        return _weights({"": value})
    if isinstance(value, Mapping):
        return {str(key): _plain(one, depth) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, depth) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(str(one) for one in value)
    value = getattr(value, "fingerprinted_as", value)
    if name := getattr(value, "__qualname__", None):
        return name
    name = str(value) if isinstance(value, torch.dtype) else type(value).__name__
    fields = vars(value) if depth and hasattr(value, "__dict__") else {}
    inside = _kept({k: v for k, v in fields.items() if not callable(v)}, depth - 1)
    return {"class": name, **inside} if inside else name


def _shared(places: list[tuple[str, object]]) -> object:
    """Return the value that all modules with an option share, else a hash of which has what."""
    first = places[0][1]
    return first if all(value == first for _, value in places) else _digest(places)


@cache
def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> str:
    return _digest(sorted(tokenizer.get_vocab().items()))


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _kind(tensor: torch.Tensor) -> str:
    wrapper = "" if type(tensor) in (torch.Tensor, nn.Parameter) else f"{type(tensor).__name__} "
    return wrapper + str(tensor.dtype).removeprefix("torch.")


def _weights(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of every bit of named tensors, never cached: `.data` leaves no trace."""
    names, big, small = [], [], defaultdict(list)
    for name, tensor in tensors.items():
        for inner in _inner(tensor.detach()):
            names.append((name, [*inner.shape], str(inner.dtype)))
            if inner.is_meta or not inner.numel():
                continue
            data = inner.contiguous().view(-1).view(torch.uint8)
            if len(data) > _SMALL:
                big.append(data)
            else:
                small[str(data.device)].append(data)
    big += [torch.cat(parts) for parts in small.values()]
    return _digest([names, [_sums(data).tolist() for data in big]])


def _inner(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that a quantised one consists of, itself for a plain one."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [plain for name in names for plain in _inner(getattr(tensor, name))]
    return [tensor.as_subclass(torch.Tensor)]


def _sums(data: torch.Tensor) -> torch.Tensor:
    """Return each row's sum of words times odd numbers, modulo 2^64: one change changes it."""
    if len(data) % 8 or data.storage_offset() % 8:
        data = nn.functional.pad(data, (0, -len(data) % 8)).clone()
    words, factors = data.view(torch.int64), _factors(str(data.device))
    cut = len(words) // _ROW * _ROW
    rows = words[:cut].view(-1, _ROW).split(1 if data.is_cpu else _ROWS_ON_GPU)
    rest = words[cut:] * factors[: len(words) - cut]
    return torch.cat([*((part * factors).sum(1) for part in rows), rest.sum()[None]])


@cache
def _factors(device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**63), 2**63 - 1, (_ROW,), generator=generator, dtype=torch.int64)
    return (words | 1).to(device)
