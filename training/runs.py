"""A training run that can be killed at any moment and goes on where it was.

Batches depend on the seed and the step alone, so a run in two pieces ends with the weights of a run in one,
as long as its length is told in steps; a limit in minutes makes the length depend on the machine.
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

from training.drawing import loss_plot

WARM_UP = 0.05
CLIP_NORM = 1.0
SAVE_EVERY_S = 60.0
TELL_EVERY_S = 15.0
LOG_EVERY = 10

LossOf = Callable[[int, float], torch.Tensor]
"""`loss_of(step, progress)`: the step counts from 0, progress runs from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Length:
    """A run ends after `steps`, or when it has trained for `minutes`, whichever comes first."""

    steps: int
    minutes: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """0 at the start, 1 or more at the end."""
        timed = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return max(step / self.steps, timed)


def learning_rate(peak: float, progress: float) -> float:
    """Up to `peak` over the first twentieth, then down to 0 along a cosine."""
    if progress < WARM_UP:
        return peak * max(progress / WARM_UP, 0.02)
    falling = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return peak * 0.5 * (1 + math.cos(math.pi * falling))


class Run:
    """The weights of `modules` on their way; `ema_decay` keeps a moving average of them beside.

    The state lives in `<folder>/<name>.pt`, the loss curve in `<name>-loss.png`.
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
        self._state = folder / f"{name}.pt"
        self._plot = folder / f"{name}-loss.png"
        self._parameters = [one for part in self.modules.values() for one in part.parameters()]
        self._average = [one.detach().clone() for one in self._parameters] if ema_decay else []
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=peak_lr, betas=(0.9, 0.99), weight_decay=weight_decay
        )
        if self._state.is_file():
            self._resume()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.length.progress(self.step, self.seconds) >= 1

    def train(self, loss_of: LossOf, *, until_step: int | None = None) -> None:
        """Train to the end, or up to `until_step`; saves every minute."""
        saved = told = time.monotonic()
        recent: list[float] = []
        while not self.finished and (until_step is None or self.step < until_step):
            started = time.monotonic()
            recent.append(self._learn(loss_of))
            now = time.monotonic()
            self.seconds += now - started
            if self.step % LOG_EVERY == 0:
                self.losses.append((self.step, sum(recent) / len(recent)))
                recent = []
            if now - told > TELL_EVERY_S:
                told = now
                self._tell()
            if now - saved > SAVE_EVERY_S:
                saved = now
                self.save()
        self.save()

    def _learn(self, loss_of: LossOf) -> float:
        """One step; its loss. A loss that is no number stops the run before it spoils the saved state."""
        progress = self.length.progress(self.step, self.seconds)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.peak_lr, progress)
        loss = loss_of(self.step, progress)
        if not torch.isfinite(loss):
            raise ArithmeticError(f"{self.name}: the loss is {loss.item()} at step {self.step}.")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, CLIP_NORM)
        self._optimizer.step()
        self.step += 1
        self._follow()
        return loss.item()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average a little towards the weights; quickly at first, while they are still random."""
        if self.ema_decay is None:
            return
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self._average, [one.detach() for one in self._parameters], 1 - decay)

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the moving average into the modules; without one nothing changes. Training on from here would
        train the average."""
        for parameter, average in zip(self._parameters, self._average, strict=False):
            parameter.copy_(average)

    def save(self) -> None:
        """Write the state and the loss curve; a run killed while writing keeps the older state."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "modules": {name: part.state_dict() for name, part in self.modules.items()},
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
        }
        self._state.parent.mkdir(parents=True, exist_ok=True)
        aside = self._state.with_suffix(".writing")
        torch.save(state, aside)
        aside.replace(self._state)
        loss_plot(self.losses, title=self.name).save(self._plot)

    def _resume(self) -> None:
        where = self._parameters[0].device
        state: dict[str, Any] = torch.load(self._state, weights_only=True, map_location=where)
        for name, part in self.modules.items():
            part.load_state_dict(state["modules"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._average = state["average"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses = [(step, loss) for step, loss in state["losses"]]

    def _tell(self) -> None:
        done = self.length.progress(self.step, self.seconds)
        loss = self.losses[-1][1] if self.losses else math.nan
        click.echo(
            f"{self.name}: {done:4.0%}  step {self.step}  loss {loss:.4f}  after {self.seconds / 60:.1f} min"
        )
