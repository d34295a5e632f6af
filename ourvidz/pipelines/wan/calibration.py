"""How much the blocks of a transformer change their input, by noise level: what MagCache goes by.

MagCache (https://arxiv.org/abs/2506.09045) skips a step where the change will hardly be larger or smaller
than it was in the step before. It wants the ratio of every step to the one before it, for one number of
steps. The change itself depends on the noise level alone, so it is measured once for a checkpoint, and the
ratios of any schedule follow.
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

SAMPLE = VideoJob(
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
"""What is measured: small, and with as many steps as any job of the catalog."""
LEAST = 1e-8

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """The logarithm of the change at falling noise levels between 1 and 0."""

    levels: tuple[float, ...]
    logs: tuple[float, ...]

    def check(self) -> None:
        """`ValueError` when no ratios follow: every job would fail, or skip steps at random."""
        if not self.levels or len(self.levels) != len(self.logs):
            raise ValueError(f"{len(self.levels)} levels and {len(self.logs)} logarithms")
        if not np.isfinite([*self.levels, *self.logs]).all() or (np.diff(self.levels) >= 0).any():
            raise ValueError("levels that do not fall, or numbers that are none")

    def ratios(self, levels: list[float]) -> list[float]:
        """How the change grows from step to step of a schedule; 1 for the first one."""
        logs = np.interp(levels, self.levels[::-1], self.logs[::-1])
        return [1.0, *(float(np.exp(after - before)) for before, after in itertools.pairwise(logs))]


@contextmanager
def watching(transformer: Any) -> Iterator[list[float]]:
    """The logarithm of the change, its mean over all tokens, of every pass in here."""
    logs: list[float] = []
    before: list[torch.Tensor] = []

    def enter(_: object, given: tuple[torch.Tensor, ...]) -> None:
        before.append(given[0])

    def leave(_: object, __: object, said: torch.Tensor) -> None:
        change = torch.linalg.norm((said - before.pop()).float(), dim=-1)
        logs.append(float(change.clamp_min(LEAST).log().mean()))

    hooks = [
        transformer.blocks[0].register_forward_pre_hook(enter),
        transformer.blocks[-1].register_forward_hook(leave),
    ]
    try:
        yield logs
    finally:
        for hook in hooks:
            hook.remove()


def fingerprint(transformer: Any) -> str:
    """Tells checkpoints apart: by the shape of the transformer, its precision and its last weights."""
    weights = transformer.proj_out.weight.detach().float().cpu().numpy().tobytes()
    shape = json.dumps([len(transformer.blocks), str(transformer.dtype)]).encode()
    return hashlib.sha256(shape + weights).hexdigest()[:16]


def kept(folder: Path | None, name: str, measured: Callable[[], Magnitudes]) -> Magnitudes:
    """What lies in `folder` under `name`, else what `measured` finds, which is put there then."""
    if folder is None:
        return measured()
    file = folder / f"{name}.json"
    found = _read(file)
    if found is None:
        found = measured()
        _write(file, found)
    return found


def _read(file: Path) -> Magnitudes | None:
    try:
        said = json.loads(file.read_text())
        found = Magnitudes(tuple(map(float, said["levels"])), tuple(map(float, said["logs"])))
        found.check()
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        _log.warning("calibration_unreadable", file=str(file), exc_info=True)
        return None


def _write(file: Path, found: Magnitudes) -> None:
    """Whole or not at all: another worker may be reading, or writing the same."""
    aside = file.with_name(f"{file.stem}.{uuid.uuid4().hex}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(asdict(found)))
        aside.replace(file)
    except OSError:
        # The worker can do without: the next one measures again.
        _log.warning("calibration_not_kept", file=str(file), exc_info=True)
