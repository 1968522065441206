"""Distil a large U-Net into a KOALA-shaped one: weights by a map, features of self-attention.

The authors' training code is not public. The loss is BK-SDM's (Kim et al., arXiv 2305.15798),
L = L_task + L_out + L_feat, with KOALA's features (Lee et al., arXiv 2312.04005): the outputs of
the self-attention modules instead of those of whole blocks.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from koala_nb.core.errors import unknown_name
from koala_nb.models.unet import costs, layers_per_block, stage_of, teacher_name, weight_map

Features = Mapping[str, Tensor]  # outputs of modules, by name

# Which modules' outputs a student imitates; names as in diffusers' U-Nets.
FEATURES: dict[str, str | None] = {
    "self-attention": r"\.attn1$",  # KOALA
    "cross-attention": r"\.attn2$",
    "feed-forward": r"\.ff$",
    "residual": r"\.resnets\.\d+$",
    "block": r"^(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)$",  # BK-SDM
    "none": None,
}


@dataclass(frozen=True)
class Weights:
    """What each part of the loss weighs; BK-SDM and KOALA: 1."""

    task: float = 1.0
    out: float = 1.0
    feat: float = 1.0


def init_from_teacher(student: nn.Module, teacher: nn.Module) -> None:
    """Copy a teacher's tensors into its student by `weight_map`, whose ValueError is raised."""
    pairs, source = weight_map(student, teacher), teacher.state_dict()
    student.load_state_dict({name: source[at] for name, at in zip(pairs.student, pairs.teacher)})


def feature_pairs(
    student: nn.Module, teacher: nn.Module, kind: str = "self-attention", stages: Sequence[str] = ()
) -> dict[str, str]:
    """Return the student's modules whose outputs imitate, and the teacher's modules to imitate.

    `kind`: a key of FEATURES; `stages`: such as "up_blocks.0" (default: all). ValueError for
    others, stages without such modules, and a student that was not cut from this teacher.
    """
    if kind not in FEATURES:
        raise unknown_name("feature", kind, FEATURES)
    there = dict.fromkeys(stage_of(name) for name, _ in student.named_modules() if name)
    known = [name for name in there if name != "rest"]
    for stage in set(stages) - set(known):
        raise unknown_name("stage of the student", stage, known)
    weight_map(student, teacher)
    if (pattern := FEATURES[kind]) is None:
        return {}
    layers = layers_per_block(teacher), layers_per_block(student)
    names = [name for name, _ in student.named_modules() if re.search(pattern, name)]
    names = [name for name in names if not stages or stage_of(name) in stages]
    if not names:
        raise ValueError(f"No {kind} modules in {', '.join(stages)}: choose other stages.")
    return {name: teacher_name(name + ".", *layers)[:-1] for name in names}


class FeatureHooks:
    """The outputs of named modules during the forward pass between `start` and `collect`.

    The hooks stay until `remove` (or the end of a `with`), since `torch.compile` traces those that
    are there at its first call; register before it. Outside `start` ... `collect` nothing is kept:
    gradient checkpointing calls the modules again in the backward pass. AttributeError for an
    unknown name.
    """

    def __init__(self, unet: nn.Module, names: Iterable[str]) -> None:
        # A block compiled without hooks must not stand in for its like that has one.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        self.names, self.collecting = list(dict.fromkeys(names)), False
        self.outputs: dict[str, Tensor] = {}
        modules = [unet.get_submodule(name) for name in self.names]  # a bad name hooks nothing
        self._handles = [
            module.register_forward_hook(self._keep(name))
            for name, module in zip(self.names, modules)
        ]

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            if self.collecting:  # down blocks also return their skip connections
                self.outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def start(self) -> None:
        """Begin to keep outputs."""
        self.outputs.clear()
        self.collecting = True

    def collect(self) -> dict[str, Tensor]:
        """Return the outputs, before `backward()`, and stop; RuntimeError if one is missing."""
        self.collecting = False
        if lost := [name for name in self.names if name not in self.outputs]:
            raise RuntimeError(
                f"No output of {lost[0]} was seen: its U-Net was not called, or torch.compile had "
                "compiled it before the hooks were made."
            )
        return {name: self.outputs.pop(name) for name in self.names}

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def feature_loss(student: Features, teacher: Features, pairs: Mapping[str, str]) -> Tensor:
    """Return the sum over pairs of mean squared differences (BK-SDM, eq. 3); 0 without pairs."""
    losses = [F.mse_loss(student[m].float(), teacher[t].float()) for m, t in pairs.items()]
    return torch.stack(losses).sum() if losses else torch.zeros(())


class Distiller:
    """A student's loss against a frozen teacher; hooks both U-Nets until `remove`.

    `pairs`: of `feature_pairs`. Make it before anything wraps the student, whose modules it keeps.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pairs: Mapping[str, str],
        weights: Weights = Weights(),
    ) -> None:
        self.teacher, self.pairs, self.weights = teacher, dict(pairs), weights
        self.student_hooks = FeatureHooks(student, list(pairs))
        self.teacher_hooks = FeatureHooks(teacher, pairs.values())

    def losses(
        self,
        predict: Callable[[], Tensor],
        inputs: Mapping[str, object],
        noise: Tensor,
        sample_weight: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L = w_task L_task + w_out L_out + w_feat L_feat, and its parts to log.

        predict: calls the student (so that a wrapper such as DistributedDataParallel is called) and
        returns its noise, (n, c, h, w); inputs: the teacher's arguments; noise: what was added;
        sample_weight: (n,), of L_task alone, such as min-SNR's; default 1.
        """
        self.teacher_hooks.start()
        with torch.no_grad():
            target = self.teacher(**inputs).sample
        teacher = self.teacher_hooks.collect()
        self.student_hooks.start()
        predicted = predict()
        student = self.student_hooks.collect()
        task = F.mse_loss(predicted.float(), noise.float(), reduction="none").mean((1, 2, 3))
        parts = {
            "task": (task if sample_weight is None else task * sample_weight).mean(),
            "out": F.mse_loss(predicted.float(), target.float()),
            "feat": feature_loss(student, teacher, self.pairs).to(predicted.device),
        }
        weights = asdict(self.weights)
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}

    def remove(self) -> None:
        """Take the hooks off both U-Nets."""
        self.student_hooks.remove()
        self.teacher_hooks.remove()


def training_cost(
    student: nn.Module,
    teacher: nn.Module,
    batch: int,
    latent: tuple[int, int] | None = None,
    checkpointing: bool = False,
) -> dict[str, float]:
    """Compute what a training step needs, from configurations: GB of memory, TFLOP.

    Student and its gradients, AdamW's two moments and the EMA in float32; the frozen teacher in
    half precision. Backward passes cost twice a forward pass; checkpointing adds one forward pass.
    Activations are not in the memory: they depend on the implementation; measure them.
    """
    small, large = (costs(unet, latent).sum(numeric_only=True) for unet in (student, teacher))
    passes = 4 if checkpointing else 3
    return {
        "student, gradients, AdamW, EMA (GB)": small.parameters * 5 * 4 / 1e9,
        "teacher (GB)": large.parameters * 2 / 1e9,
        "operations a step (TFLOP)": batch * (passes * small.flops + large.flops) / 1e12,
    }
