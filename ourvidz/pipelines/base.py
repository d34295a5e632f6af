"""What every pipeline is to the rest of the project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from PIL.Image import Image

from ourvidz.errors import OurvidzError
from ourvidz.jobs.job import ChatJob, ImageJob, VideoJob

OnStep = Callable[[int, int], None]
"""`on_step(done, total)` before the first step (done = 0) and after every step; it may raise to stop."""
PreviewRenderer = Callable[[], Image]
"""Draws a small RGB picture of the unfinished work as it was. On any thread, at any later time; may fail."""
OnPreview = Callable[[Callable[[], PreviewRenderer]], None]
"""`on_preview(take)` after every step but the last, before its `on_step`. `take()`, while `on_preview` runs,
copies what has to be drawn to the CPU; without it nothing is copied. `on_preview` raises nothing."""
OnPicture = Callable[[int, Image], None]
"""`on_picture(index, picture)` once for every finished picture, while the next ones are still being made; it
may raise to stop."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """What an image pipeline made: RGB pictures in seed order, and what it found out on the way.

    `seconds` is the time spent generating, `negative_prompt_used` whether the negative prompt reached the
    model. `metadata` joins the job's callback metadata, `asset_metadata` every asset's.
    """

    images: list[Image]
    seeds: list[int]
    seconds: float
    negative_prompt_used: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    asset_metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReferencePictures:
    """The pictures a clip is to follow, RGB, of any size. Which of them count is said by the job's mode."""

    single: Image | None = None
    start: Image | None = None
    end: Image | None = None


@dataclass(frozen=True, slots=True)
class SourceClip:
    """What a clip is made from where the model can read clips (VACE); pictures of any size.

    `frames` are RGB pictures by number, -1 the last: grey where there is none. `masks` are by number too:
    what is white is made anew, and so is a frame without one. `pictures` show what the clip is to contain.
    """

    frames: dict[int, Image] = field(default_factory=dict)
    masks: dict[int, Image] = field(default_factory=dict)
    pictures: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Clip:
    """What a video pipeline made, and what it found out on the way.

    `frames` are RGB pictures of one size, as many as the job asked for; `frames_generated` is how many the
    model made, of which those beyond are cut off. `seconds` is the time spent generating.
    `metadata` joins the job's callback metadata, `asset_metadata` the asset's.
    """

    frames: list[Image]
    fps: int
    seed: int
    frames_generated: int
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

    def generate(
        self,
        job: ImageJob,
        *,
        reference: Image | None = None,
        on_step: OnStep,
        on_preview: OnPreview | None = None,
        on_picture: OnPicture | None = None,
    ) -> Pictures:
        """Make the pictures of one job. `OutOfMemory`, `I2IPipelineError`, or whatever `on_step` or
        `on_picture` raises; pictures may have been handed on before."""


class VideoPipeline(Protocol):
    """A warm pipeline that makes clips, and pictures where a clip has one frame."""

    def load(self) -> None:
        """Bring the weights to the device. Safe to call twice. `ModelLoadError` says what is wrong."""

    def unload(self) -> None:
        """Take the weights off the device. Safe to call twice."""

    def info(self) -> dict[str, Any]:
        """Name, device, dtype, whether it is loaded, how long loading took (seconds)."""

    def generate(
        self,
        job: VideoJob,
        *,
        references: ReferencePictures | None = None,
        on_step: OnStep,
        on_preview: OnPreview | None = None,
    ) -> Clip:
        """Make the clip of one job. `OutOfMemory`, `InvalidParameters`, or whatever `on_step` raises."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one step gave to one text of a decoding.

    `text` is what can be shown now: empty while a character is half made or a stop string may be under way.
    `tokens` were generated so far. `finish` is None while the text goes on, `stop` at its natural end or at a
    stop string, `length` at `max_tokens`. `prompt_tokens` are told here where `join` could not know them.
    `error` is why this text, and no other, cannot go on.
    """

    key: str
    text: str
    tokens: int
    finish: Literal["stop", "length"] | None = None
    prompt_tokens: int | None = None
    error: OurvidzError | None = None


class Decoding(Protocol):
    """Texts that grow together, a token each a step. Texts come and go between steps."""

    def join(self, key: str, job: ChatJob) -> int:
        """Take in one more text; the number of its prompt tokens, 0 where a piece will tell it.
        `InvalidParameters` when prompt and `max_tokens` do not fit the model's context; the others are not
        disturbed."""

    def step(self) -> list[TextDelta]:
        """One token more for every text that is in and not finished, or for some of them while others are
        being read; `OutOfMemory` when they are too many."""

    def leave(self, key: str) -> None:
        """Take a text out, finished or not. Safe to call twice."""


class TextPipeline(Protocol):
    """A warm language model."""

    def load(self) -> None:
        """Bring the weights to the device. Safe to call twice. `ModelLoadError` says what is wrong."""

    def unload(self) -> None:
        """Take the weights off the device. Safe to call twice."""

    def info(self) -> dict[str, Any]:
        """`name`, `inference_engine`, device, dtype, context length (tokens), whether it is loaded, how long
        loading took (seconds)."""

    def decoding(self) -> Decoding:
        """A new batch with no texts in it."""
