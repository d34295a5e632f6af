"""A resumable training loop with AdamW, a learning-rate schedule and a moving average of the weights.

Batches depend on the seed and the step alone, so a resumed run ends with the weights of an uninterrupted one
if its length is given in steps. A limit in minutes makes the length depend on the machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from training.plots import loss_plot

WARM_UP = 0.05
CLIP_NORM = 1.0
SAVE_EVERY_S = 60.0
REPORT_EVERY_S = 15.0
LOG_EVERY = 10

StepLoss = Callable[[int, float], torch.Tensor]
"""`step_loss(step, progress)` returns the loss of one step; steps count from 0, progress runs from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Length:
    """A run ends after `steps` steps or `minutes` minutes of training, whichever comes first."""

    steps: int
    minutes: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """The completed fraction of the run, 0 at the start; 1 or more means that it has ended."""
        elapsed = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return max(step / self.steps, elapsed)


def learning_rate(peak: float, progress: float) -> float:
    """Linear warm-up to `peak` over the first twentieth of the run, then cosine decay to 0."""
    if progress < WARM_UP:
        return peak * max(progress / WARM_UP, 0.02)
    decay = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * decay))


class Run:
    """The training of `modules`, resumed from its saved state if there is one.

    With `ema_decay` a moving average of the weights is kept. The state is saved to `<folder>/<name>.pt`, the
    loss curve to `<folder>/<name>-loss.png`.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        modules: Mapping[str, torch.nn.Module],
        *,
        length: Length,
        peak_lr: float,
        weight_decay: float = 0.01,
        ema_decay: float | None = None,
    ) -> None:
        self.name = name
        self.modules = dict(modules)
        self.length = length
        self.peak_lr = peak_lr
        self.ema_decay = ema_decay
        self.step = 0
        self.seconds = 0.0
        self.losses: list[tuple[int, float]] = []
        self._state_path = folder / f"{name}.pt"
        self._plot_path = folder / f"{name}-loss.png"
        self._parameters = [parameter for part in self.modules.values() for parameter in part.parameters()]
        self._average = [parameter.detach().clone() for parameter in self._parameters] if ema_decay else []
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=peak_lr, betas=(0.9, 0.99), weight_decay=weight_decay
        )
        if self._state_path.is_file():
            self._resume()

    @property
    def finished(self) -> bool:
        """Whether the run has reached its length."""
        return self.length.progress(self.step, self.seconds) >= 1

    def train(self, step_loss: StepLoss, *, until_step: int | None = None) -> None:
        """Train to the end or to `until_step`, and save every minute and at the end."""
        saved = reported = time.monotonic()
        recent: list[float] = []
        while not self.finished and (until_step is None or self.step < until_step):
            started = time.monotonic()
            recent.append(self._step(step_loss))
            now = time.monotonic()
            self.seconds += now - started
            if self.step % LOG_EVERY == 0:
                self.losses.append((self.step, sum(recent) / len(recent)))
                recent = []
            if now - reported > REPORT_EVERY_S:
                reported = now
                self._report()
            if now - saved > SAVE_EVERY_S:
                saved = now
                self.save()
        self.save()

    def _step(self, step_loss: StepLoss) -> float:
        """Take one optimizer step; returns its loss. `ArithmeticError` if the loss is not finite, before the
        weights change."""
        progress = self.length.progress(self.step, self.seconds)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.peak_lr, progress)
        loss = step_loss(self.step, progress)
        if not torch.isfinite(loss):
            raise ArithmeticError(f"{self.name}: the loss is {loss.item()} at step {self.step}.")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, CLIP_NORM)
        self._optimizer.step()
        self.step += 1
        self._update_average()
        return loss.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the average towards the weights, with a smaller decay in the first steps."""
        if self.ema_decay is None:
            return
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self._average, [parameter.detach() for parameter in self._parameters], 1 - decay)

    @torch.no_grad()
    def use_average(self) -> None:
        """Replace the weights of the modules by their moving average, if there is one. The run must not be
        trained afterwards."""
        for parameter, average in zip(self._parameters, self._average, strict=False):
            parameter.copy_(average)

    def save(self) -> None:
        """Write the state and the loss curve. The state is replaced atomically."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "modules": {name: part.state_dict() for name, part in self.modules.items()},
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
        }
        self._state_path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._state_path.with_suffix(".writing")
        torch.save(state, partial)
        partial.replace(self._state_path)
        loss_plot(self.losses, title=self.name).save(self._plot_path)

    def _resume(self) -> None:
        """Load the saved modules, optimizer, average, progress and losses."""
        device = self._parameters[0].device
        state: dict[str, Any] = torch.load(self._state_path, weights_only=True, map_location=device)
        for name, part in self.modules.items():
            part.load_state_dict(state["modules"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._average = state["average"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses = [(step, loss) for step, loss in state["losses"]]

    def _report(self) -> None:
        """Print progress, step, loss and time."""
        done = self.length.progress(self.step, self.seconds)
        loss = self.losses[-1][1] if self.losses else math.nan
        click.echo(
            f"{self.name}: {done:4.0%}  step {self.step}  loss {loss:.4f}  after {self.seconds / 60:.1f} min"
        )
