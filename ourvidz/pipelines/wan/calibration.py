"""Calibration of MagCache: how much the transformer's blocks change their input, by noise level.

MagCache (https://arxiv.org/abs/2506.09045) skips a step whose change is expected to be about as large as in
the step before. It needs the ratio of the changes of consecutive steps, for one number of steps. The change
depends on the noise level alone, so it is measured once per checkpoint, and the ratios of any schedule are
interpolated from that.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ourvidz import log
from ourvidz.jobs.job import VideoJob

CALIBRATION_JOB = VideoJob(
    id="calibration",
    type="video_high",
    user_id="calibration",
    expected_time=1,
    prompt="a red circle moves right over a green field",
    steps=50,
    guidance_scale=1.0,
    width=256,
    height=256,
    frames=17,
    seed=0,
)
"""The job that is measured: small, with as many steps as any job of the catalog."""
MIN_CHANGE = 1e-8

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class MagnitudeCurve:
    """The logarithm of the change (`logs`) at strictly falling noise levels between 1 and 0 (`levels`)."""

    levels: tuple[float, ...]
    logs: tuple[float, ...]

    def validate(self) -> None:
        """Raise `ValueError` for values from which no ratios can be computed."""
        if not self.levels or len(self.levels) != len(self.logs):
            raise ValueError(f"{len(self.levels)} levels and {len(self.logs)} logarithms")
        if not np.isfinite([*self.levels, *self.logs]).all() or (np.diff(self.levels) >= 0).any():
            raise ValueError("levels that do not fall, or numbers that are not finite")

    def ratios(self, sigmas: list[float]) -> list[float]:
        """The change at each noise level relative to the previous one; 1 for the first."""
        logs = np.interp(sigmas, self.levels[::-1], self.logs[::-1])
        return [1.0, *(float(np.exp(current - last)) for last, current in itertools.pairwise(logs))]


@contextmanager
def recording_changes(transformer: Any) -> Iterator[list[float]]:
    """Record the logarithm of the change, averaged over all tokens, of every pass inside this context."""
    logs: list[float] = []
    inputs: list[torch.Tensor] = []

    def record_input(_: object, args: tuple[torch.Tensor, ...]) -> None:
        inputs.append(args[0])

    def record_change(_: object, __: object, output: torch.Tensor) -> None:
        change = torch.linalg.norm((output - inputs.pop()).float(), dim=-1)
        logs.append(float(change.clamp_min(MIN_CHANGE).log().mean()))

    hooks = [
        transformer.blocks[0].register_forward_pre_hook(record_input),
        transformer.blocks[-1].register_forward_hook(record_change),
    ]
    try:
        yield logs
    finally:
        for hook in hooks:
            hook.remove()


def fingerprint(transformer: Any) -> str:
    """16 hexadecimal digits that identify a transformer by its depth, dtype and last weights."""
    weights = transformer.proj_out.weight.detach().float().cpu().numpy().tobytes()
    shape = json.dumps([len(transformer.blocks), str(transformer.dtype)]).encode()
    return hashlib.sha256(shape + weights).hexdigest()[:16]


def load_or_measure(folder: Path | None, name: str, measure: Callable[[], MagnitudeCurve]) -> MagnitudeCurve:
    """The curve in `<folder>/<name>.json`. If it is missing or unreadable, the result of `measure`, which is
    then written there. Without a folder nothing is read or written."""
    if folder is None:
        return measure()
    file = folder / f"{name}.json"
    curve = _read(file)
    if curve is None:
        curve = measure()
        _write(file, curve)
    return curve


def _read(file: Path) -> MagnitudeCurve | None:
    """The curve in a file; None if there is no file or its content is invalid."""
    try:
        content = json.loads(file.read_text())
        curve = MagnitudeCurve(tuple(map(float, content["levels"])), tuple(map(float, content["logs"])))
        curve.validate()
        return curve
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        _log.warning("calibration_unreadable", file=str(file), exc_info=True)
        return None


def _write(file: Path, curve: MagnitudeCurve) -> None:
    """Write the file atomically: another worker may read or write it at the same time."""
    temporary = file.with_name(f"{file.stem}.{uuid.uuid4().hex}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(curve)))
        temporary.replace(file)
    except OSError:
        # The worker continues without the file; the next one measures again.
        _log.warning("calibration_not_kept", file=str(file), exc_info=True)
