"""One training loop: Accelerate, accumulation, EMA, a falling rate, checkpoints, a log.

Data, random numbers and rate of a step depend on the step and the process alone, so a resumed run
goes on as if it had never stopped.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import nn

from koala_nb.core.errors import first_line
from koala_nb.core.files import clean_temporary, open_atomic, write_atomic

SAVE_SECONDS = 300
LOG_STEPS = 10


@dataclass(frozen=True)
class Stage:
    """How long and how fast a run trains: samples in all, batch over all processes, rate."""

    samples: int
    batch: int
    rate: float
    warmup: int = 200
    decay: float = 0.4  # share of the samples over which the rate falls to zero
    ema: float = 0.999
    beta2: float = 0.999
    accumulation: int = 1  # parts into which a process cuts its share of a batch


def rate_factor(step: int, steps: int, stage: Stage) -> float:
    """Return the share of the full rate: linear warm-up, constant, linear fall (none: decay 0)."""
    left = (steps - step) / (steps * stage.decay) if stage.decay else 1.0
    return min(1.0, (step + 1) / stage.warmup, max(0.0, left))


def random_draws(first: int, size: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Return random numbers of samples `first` onwards, each a function of its index alone.

    Two uniform numbers, (size, 2), and two normal tensors a sample, each (size, *shape).
    """
    uniform, normal = torch.empty(size, 2), torch.empty(2, size, *shape)
    generator = torch.Generator()
    for i in range(size):
        generator.manual_seed(first + i)
        uniform[i] = torch.rand(2, generator=generator)
        normal[:, i] = torch.randn(2, *shape, generator=generator)
    return uniform, normal[0], normal[1]


class Loop:
    """Train `module` by a loss of (step, rank, batch a process); resume from `folder`.

    loss: called with (module, number, size) -> (scalar tensor, dict of floats to log): the batch of
    `size` samples with that number, so that samples number * size onwards are seen.
    preview: called with the EMA weights in place, returns a PNG's bytes or None.
    """

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        stage: Stage,
        loss: Callable,
        preview: Callable[[nn.Module], bytes | None] = lambda module: None,
        mixed_precision: str = "no",
        compiled: tuple[type, ...] = (),
        device: str | None = None,
    ) -> None:
        # One process trains several stages, and Accelerate keeps the first one's precision.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=stage.accumulation,
            cpu=device == "cpu" or not torch.cuda.is_available(),
            step_scheduler_with_optimizer=False,
        )
        self.folder, self.stage, self.loss, self.preview = folder, stage, loss, preview
        self.checkpoint = folder / "checkpoint.pt"  # all that a resumed run needs
        self.steps = stage.samples // stage.batch
        self.step = self.saved_step = 0
        self.module = module
        weights = [p for p in module.parameters() if p.requires_grad]
        self.ema = EMAModel(weights, decay=stage.ema, use_ema_warmup=True, power=0.75)
        optimizer = torch.optim.AdamW(
            weights, stage.rate, (0.9, stage.beta2), weight_decay=0.01, fused=True
        )
        if os.environ.get("KOALA_NB_COMPILE", "1") == "1":
            torch._dynamo.config.recompile_limit = 64  # a graph for each width
            parts: list[nn.Module] = [p for p in module.modules() if isinstance(p, compiled)]
            for part in parts:
                part.compile()
        self.trained, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.ema.to(self.accelerator.device)

    def run(self, minutes: float | None = None) -> bool:
        """Train until the stage's samples or the minutes are used up; True when it is finished.

        Only one run may train in a folder: hold its lock. ValueError where the loss or a weight is
        no finite number: nothing is saved then. OSError where a checkpoint cannot be written, as on
        a full disk: the one before it stays.
        """
        first = self._resume()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            clean_temporary(self.folder)  # of a run that was killed as it saved
        begin = saved = logged = time.monotonic()
        values: dict[str, list[float]] = {}
        for step in range(first, self.steps):
            self.step = step
            self._train_step(step, values)
            now = time.monotonic()
            if (step + 1) % LOG_STEPS == 0:
                count = len(values["loss"]) // self.stage.accumulation * self.stage.batch
                self._log(step + 1, values, count / (now - logged))
                values, logged = {}, now
            stop = self._agree(minutes is not None and now - begin > 60 * minutes)
            if stop or self._agree(now - saved > SAVE_SECONDS):
                self.save(step + 1)
                saved = logged = time.monotonic()
            if stop:
                return False
        self.save(self.steps)
        if self.accelerator.is_main_process:
            (self.folder / "finished").touch()
        return True

    def _train_step(self, step: int, values: dict[str, list[float]]) -> None:
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        parts = self.stage.accumulation
        set_seed(step * size + rank)
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.rate * rate_factor(step, self.steps, self.stage)
        for part in range(parts):
            number = (step * size + rank) * parts + part
            with self.accelerator.accumulate(self.trained):
                loss, logged = self.loss(self.trained, number, self.stage.batch // (size * parts))
                if not torch.isfinite(loss.detach()):
                    raise self._diverged(f"The loss is {float(loss.detach())}", step + 1)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.trained.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in {"loss": loss.detach(), **logged}.items():
                values.setdefault(name, []).append(float(value))
        self.ema.step(p for p in self.module.parameters() if p.requires_grad)

    def _diverged(self, what: str, step: int) -> ValueError:
        kept = f"the last checkpoint, {self.checkpoint}, is of step {self.saved_step}"
        message = f"{what} at step {step} of {self.steps}, and training stopped; "
        message += kept if self.saved_step else "there is no checkpoint yet"
        return ValueError(f"{message}: try a lower rate or another precision.")

    def _agree(self, wish: bool) -> bool:
        """Return the first process's wish, so that all stop and save at the same step."""
        if self.accelerator.num_processes == 1:
            return wish
        flag = torch.tensor(float(wish), device=self.accelerator.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag)

    def _log(self, step: int, values: dict[str, list[float]], speed: float) -> None:
        if not self.accelerator.is_main_process:
            return
        row = {"step": step, "of": self.steps, "samples_per_second": round(speed, 1)}
        row |= {name: round(sum(v) / len(v), 5) for name, v in values.items()}
        print(json.dumps(row), flush=True)
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")

    def _resume(self) -> int:
        if not self.checkpoint.is_file():
            return 0
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)
        self.saved_step = state["step"]
        return self.saved_step

    def save(self, step: int) -> None:
        """Write the checkpoint, whole or not at all, and a preview; ValueError as for `run`."""
        if not all(weight.isfinite().all() for weight in self.module.parameters()):
            raise self._diverged("A weight is no finite number", step)
        if self.accelerator.is_main_process:
            self._write_checkpoint(step)
            with self.averaged() as module:
                picture = self.preview(module)
            if picture:
                write_atomic(self.folder / f"preview-{step:06d}.png", picture)
        self.saved_step = step
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, step: int) -> None:
        parts = {"module": self.module, "optimizer": self.optimizer, "ema": self.ema}
        state = {name: part.state_dict() for name, part in parts.items()}
        try:
            with open_atomic(self.checkpoint, sync=True) as file:
                torch.save({**state, "step": step}, file)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError of a full disk
            kept = f"that of step {self.saved_step} is kept" if self.saved_step else "none is there"
            reason = first_line(error.__cause__ or error)
            raise OSError(
                f"The checkpoint of step {step} cannot be written to {self.folder} ({reason}); "
                f"{kept}: free some space and call again."
            ) from error

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Give the module its averaged (EMA) weights for a while."""
        weights = [p for p in self.module.parameters() if p.requires_grad]
        self.ema.store(weights)
        self.ema.copy_to(weights)
        self.module.eval()
        try:
            yield self.module
        finally:
            self.ema.restore(weights)
            self.module.train()
