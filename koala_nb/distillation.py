"""Distil a large U-Net into a KOALA-shaped one: weights by a map, features of self-attention.

The authors' training code is not public. The loss is BK-SDM's (Kim et al., arXiv 2305.15798),
L = L_task + L_out + L_feat, with KOALA's features (Lee et al., arXiv 2312.04005): the outputs of
the self-attention modules instead of those of whole blocks.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

# Each up stage keeps the pairs 0 and 2 of three, numbered 0 and 1 in the student (BK-SDM's rule).
_MOVED = re.compile(r"^(up_blocks\.\d+\.(?:resnets|attentions))\.1(?=\.|$)")


def teacher_name(name: str, teacher_layers: int = 2, student_layers: int = 1) -> str:
    """Return the teacher's name of a student's module or tensor.

    Only the cut from two layers a block to one renames: in up stages, pair 1 comes from pair 2.
    """
    if (teacher_layers, student_layers) == (2, 1):
        return _MOVED.sub(r"\1.2", name)
    return name


def layers_per_block(unet: nn.Module) -> int:
    """Return how many residual blocks a U-Net has in each down stage."""
    layers = unet.config.layers_per_block
    return layers if isinstance(layers, int) else layers[0]


def inherit(student: nn.Module, teacher: nn.Module) -> None:
    """Copy into each tensor of a student U-Net the teacher's tensor by the map.

    Raises ValueError naming the first tensor whose shape does not match or that is missing.
    """
    source, layers = teacher.state_dict(), (layers_per_block(teacher), layers_per_block(student))
    taken = {}
    for name, tensor in student.state_dict().items():
        origin = teacher_name(name, *layers)
        if origin not in source or source[origin].shape != tensor.shape:
            found = tuple(source[origin].shape) if origin in source else "none"
            raise ValueError(
                f"The student's {name} {tuple(tensor.shape)} has no counterpart in the teacher: "
                f"{origin} is {found}. Choose a student cut from this teacher."
            )
        taken[name] = source[origin]
    student.load_state_dict(taken)


def self_attention_names(unet: nn.Module) -> list[str]:
    """Return the names of a U-Net's self-attention modules (`attn1`), in order of definition."""
    return [name for name, _ in unet.named_modules() if name.endswith(".attn1")]


@contextmanager
def features(unet: nn.Module, names: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the outputs of named modules during forward passes; hooks go away on exit.

    Read the features before `backward()`: under gradient checkpointing the backward pass calls
    the modules again and overwrites them.
    """
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            found[name] = output

        return hook

    modules = [unet.get_submodule(name) for name in names]  # an unknown name stops before any hook
    handles = [module.register_forward_hook(keep(name)) for name, module in zip(names, modules)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def feature_loss(
    student: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor], layers: tuple[int, int]
) -> torch.Tensor:
    """Return the sum over paired features of their mean squared difference (BK-SDM, eq. 3)."""
    losses = [
        F.mse_loss(value.float(), teacher[teacher_name(name, *layers)].float())
        for name, value in student.items()
    ]
    return torch.stack(losses).sum()
