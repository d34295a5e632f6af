"""What a workflow may use. Each seam is a protocol; wiring decides what stands behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from PIL.Image import Image

from ourvidz.jobs.job import BaseJob
from ourvidz.media.provenance import DigitalSourceType
from ourvidz.pipelines.base import ImagePipeline, PreviewRenderer, TextPipeline, VideoPipeline
from ourvidz.safety.gate import Gate
from ourvidz.storage.store import Store


class Run(Protocol):
    """The running attempt, as a workflow sees it."""

    @property
    def wording(self) -> dict[str, Any] | None:
        """What was found for the job's prompt before this attempt began: see `enhancement.wording`."""

    def step(self, done: int, total: int) -> None:
        """Report a finished step. Raises `Cancelled`, `JobTimeout`, or stops an attempt whose fence is
        lost."""

    def preview(self, take: Callable[[], PreviewRenderer]) -> None:
        """Show followers of the job what `take` copies of the unfinished work, if it is time for one. Drawn
        elsewhere: costs the job no more than the copy. Raises nothing."""

    def say(self, text: str, done: int, total: int) -> bool:
        """Stream a piece of text, which may be empty, and report progress. False when nobody could be told:
        say it again. Raises what `step` raises."""

    def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
        """Store one file of this attempt: checks the fence first, retries storage failures."""


class Models(Protocol):
    """The warm pipelines of this worker."""

    def warm(self) -> None:
        """Load what this worker serves. `ModelLoadError` says what is wrong."""

    def images(self) -> ImagePipeline:
        """The pipeline for SDXL jobs, loaded."""

    def videos(self) -> VideoPipeline:
        """The pipeline for Wan jobs, loaded."""

    def texts(self, model: str) -> TextPipeline:
        """The language model of a text job, `qwen_instruct` or `qwen_base`, loaded."""

    def reload(self) -> None:
        """Drop everything and load it again, once, after a failed load."""

    def flush(self) -> None:
        """Give memory that is kept for later, and that nothing refers to, back to the device."""

    def info(self) -> dict[str, Any]:
        """What is loaded, where, and the memory it takes (MiB)."""

    def memory(self) -> dict[str, Any]:
        """`vram_used`, `vram_total` (MiB), `vram_utilization` (0 to 1), `vram_used_gb`, `vram_total_gb`
        (GiB);
        zeros where there is no GPU."""


class References(Protocol):
    """The pictures that jobs refer to."""

    def resolve(self, reference: str, *, user_id: str | None) -> Image:
        """What a job of `user_id` refers to, as an upright RGB picture. Raises `ReferenceForbidden` for
        somebody else's storage path, `ReferenceFrameError` when there is no picture to be had."""


class Signer(Protocol):
    """Who vouches for what is made here."""

    def sign(self, data: bytes, mime: str, source: DigitalSourceType) -> bytes:
        """The file with a signed C2PA manifest inside. `InternalError` when it cannot be signed."""


class Moderation(Protocol):
    """An operator's own judge of texts, for the jobs that ask for it (`sfw_mode`)."""

    def judge(self, text: str) -> None:
        """Raise `PolicyViolation` for a text that may not pass."""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a workflow is given besides the job and its run."""

    models: Models
    store: Store
    gate: Gate
    references: References
    signer: Signer | None = None
    """None where no certificate is configured."""
    moderation: Moderation | None = None
    """None where none is configured."""

    def check(self, job: BaseJob) -> None:
        """The safety gate's second look, in the worker. Raises `PolicyViolation`."""
        self.gate.judge(job)
