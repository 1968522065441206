"""Whether a model got the weights that its files hold.

diffusers and transformers fill what a file lacks, or names otherwise, with random values and say so
in a warning alone: the model then runs, and draws or reads noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

LOOK = 8  # values of each tensor that are compared


def whole(kind: Any, source: str | Path, **more: Any) -> Any:
    """Return transformers' `kind.from_pretrained(source)`, from safetensors alone, ready to infer.

    ValueError where the files lack a weight of the class, or hold it in another shape; OSError
    where there are none.
    """
    told_of = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # told, not refused
    model, told = kind.from_pretrained(source, use_safetensors=True, **told_of, **more)
    lacking = sorted(told["missing_keys"])
    lacking += sorted(str(key[0]) for key in told["mismatched_keys"])
    if lacking:
        raise ValueError(f"{_sentence(source, type(model).__name__, lacking)}: restore its files.")
    return model.eval()


def check(model: nn.Module, files: Sequence[Path]) -> None:
    """Raise ValueError unless each parameter's first values stand in a tensor of `files`.

    By value and number of elements, not by name: libraries rename and reshape what they load.
    """
    import torch
    from safetensors import safe_open

    held: dict[int, list[torch.Tensor]] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                tensor = opened.get_tensor(key)
                held.setdefault(tensor.numel(), []).append(tensor.flatten()[:LOOK])

    def stands(weight: torch.Tensor) -> bool:
        if weight.is_meta:  # so diffusers leaves what it does not find
            return False
        first = weight.detach().flatten()[:LOOK].cpu()
        return any(torch.equal(first, h.to(first.dtype)) for h in held.get(weight.numel(), ()))

    lacking = [name for name, weight in model.named_parameters() if not stands(weight)]
    if lacking:
        first = f"{files[0].parent.name}/{files[0].name}"
        raise ValueError(_sentence(first, type(model).__name__, lacking))


def _sentence(source: str | Path, kind: str, lacking: list[str]) -> str:
    return f"{source} lacks {len(lacking)} of the weights of {kind}, such as {lacking[0]}"
