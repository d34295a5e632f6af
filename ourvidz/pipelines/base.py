"""What every pipeline is to the rest of the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL.Image import Image

from ourvidz.jobs.job import ImageJob

OnStep = Callable[[int, int], None]
"""`on_step(done, total)` before the first step (done = 0) and after every step; it may raise to stop."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """What an image pipeline made: RGB pictures in seed order, and what it found out on the way.

    `seconds` is the time spent generating. `metadata` joins the job's callback metadata,
    `asset_metadata` every asset's.
    """

    images: list[Image]
    seeds: list[int]
    seconds: float
    metadata: dict[str, Any] = field(default_factory=dict)
    asset_metadata: dict[str, Any] = field(default_factory=dict)


class ImagePipeline(Protocol):
    """A warm pipeline that makes pictures."""

    def load(self) -> None:
        """Bring the weights to the device. Safe to call twice. `ModelLoadError` says what is wrong."""

    def unload(self) -> None:
        """Take the weights off the device. Safe to call twice."""

    def info(self) -> dict[str, Any]:
        """Name, device, dtype, native size, whether it is loaded, how long loading took (seconds)."""

    def generate(self, job: ImageJob, *, reference: Image | None = None, on_step: OnStep) -> Pictures:
        """Make the pictures of one job. `OutOfMemory`, `I2IPipelineError`, or whatever `on_step` raises."""
