"""Interfaces and result types of the pipelines: what the packages above may use without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from ourvidz.errors import FallbackError, OurvidzError
from ourvidz.jobs.job import ChatJob, ImageJob, VideoJob

if TYPE_CHECKING:
    from PIL.Image import Image

OnStep = Callable[[int, int], None]
"""`on_step(done, total)` is called once before the first step (done = 0) and after every step. An exception
that it raises stops the job and is raised by `generate`."""
PreviewRenderer = Callable[[], "Image"]
"""Renders a small RGB preview of a snapshot of the latents. Runs on any thread, at any later time; may
fail."""
Snapshot = Callable[[], PreviewRenderer]
"""Copies the current latents to the CPU and returns the renderer of that copy. Valid only during the call of
`on_preview` that received it; when it is not called, nothing is copied."""
OnPreview = Callable[[Snapshot], None]
"""`on_preview(snapshot)` is called after every step but the last, before that step's `on_step`. It must not
raise."""
OnImage = Callable[[int, "Image"], None]
"""`on_image(index, image)` is called once for each finished image, while later images are still being
decoded. An exception that it raises stops the job and is raised by `generate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """What every image or video pipeline reports about a finished job.

    `seconds` is the time spent generating. `batch_size` is the largest number of images that were denoised in
    one batch; 1 for videos. `negative_prompt_used` says whether the negative prompt reached the model.
    `metadata` is added to the job's callback metadata, `asset_metadata` to the metadata of every asset.
    """

    seconds: float
    batch_size: int = 1
    negative_prompt_used: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    asset_metadata: dict[str, Any] = field(default_factory=dict)

    def with_metadata(self, **metadata: Any) -> Self:
        """This result with more metadata of the job."""
        return replace(self, metadata=self.metadata | metadata)

    def without_reference(self, error: FallbackError, *, denoise_strength: float, pipeline: str) -> Self:
        """This result with the metadata of a job whose references could not be used because of `error`.

        `denoise_strength` is the one that was requested, `pipeline` the name reported for the assets.
        """
        return replace(
            self,
            metadata=self.metadata
            | {
                "reference_fallback": True,
                "reference_error": error.code,
                "reference_error_reason": error.message,
                "reference_backend": None,
            },
            asset_metadata=self.asset_metadata
            | {
                "denoise_strength": denoise_strength,
                "pipeline": pipeline,
                "resize_policy": None,
                "negative_prompt_used": self.negative_prompt_used,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedImages(GenerationResult):
    """The RGB images of one job, in the order of their seeds."""

    images: list[Image]
    seeds: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedVideo(GenerationResult):
    """The clip of one job.

    `frames` are RGB images of one size, exactly as many as the job asked for. `frames_generated` is how many
    the model generated; the surplus was cut off.
    """

    frames: list[Image]
    fps: int
    seed: int
    frames_generated: int

    @property
    def middle_frame(self) -> Image:
        """Frame n // 2 of n, counted from 0: the frame that thumbnails show."""
        return self.frames[len(self.frames) // 2]


@dataclass(frozen=True, slots=True)
class ReferenceImages:
    """The reference images of a video job, RGB, of any size. The job's reference mode decides which of them
    are used."""

    single: Image | None = None
    start: Image | None = None
    end: Image | None = None


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """The control video of a VACE checkpoint; images of any size.

    `frames` maps frame numbers (-1 is the last) to RGB images; missing frames are grey. `masks` maps frame
    numbers to masks: white areas, and frames without a mask, are generated. `reference_images` show content
    that the clip must contain.
    """

    frames: dict[int, Image] = field(default_factory=dict)
    masks: dict[int, Image] = field(default_factory=dict)
    reference_images: tuple[Image, ...] = ()


class Preempted(Exception):
    """Raised between two steps: the state after the last one is stored, and the job leaves the pipeline to
    another one. Denoising continues from there when the job is generated again."""


class DenoisingCheckpoints(Protocol):
    """The stored states of one job's denoising: another attempt continues from the newest one that fits."""

    def stored(self) -> Iterable[bytes]:
        """The stored checkpoints of this job, newest first. Called before denoising starts."""

    def is_due(self) -> bool:
        """Whether a checkpoint should be saved now. Called after every step."""

    def save(self, encode: Callable[[], bytes]) -> None:
        """Store what `encode` returns, which is called on another thread. A checkpoint that cannot be stored
        is left out. Raises `Preempted` where the job is to yield, once the checkpoint is stored."""


class ImagePipeline(Protocol):
    """A pipeline that generates images."""

    def load(self) -> None:
        """Load the weights onto the device. Idempotent. Raises `ModelLoadError`."""

    def unload(self) -> None:
        """Free the weights. Idempotent."""

    def info(self) -> dict[str, Any]:
        """Name, device, dtype, native size (px), whether it is loaded, and the load time (seconds)."""

    def generate(
        self,
        job: ImageJob,
        *,
        reference: Image | None = None,
        on_step: OnStep,
        on_preview: OnPreview | None = None,
        on_image: OnImage | None = None,
        checkpoints: DenoisingCheckpoints | None = None,
    ) -> GeneratedImages:
        """Generate the images of one job, from its last stored step on if `checkpoints` has one that fits.

        Raises `OutOfMemory`, `I2IPipelineError`, or whatever `on_step` or `on_image` raises; some images may
        have been passed to `on_image` by then.
        """


class VideoPipeline(Protocol):
    """A pipeline that generates clips. A clip of one frame is an image."""

    def load(self) -> None:
        """Load the weights onto the device. Idempotent. Raises `ModelLoadError`."""

    def unload(self) -> None:
        """Free the weights. Idempotent."""

    def info(self) -> dict[str, Any]:
        """Name, device, dtype, whether it is loaded, and the load time (seconds)."""

    def generate(
        self,
        job: VideoJob,
        *,
        references: ReferenceImages | None = None,
        on_step: OnStep,
        on_preview: OnPreview | None = None,
        checkpoints: DenoisingCheckpoints | None = None,
    ) -> GeneratedVideo:
        """Generate the clip of one job, from its last stored step on if `checkpoints` has one that fits.

        Raises `OutOfMemory`, `InvalidParameters`, or whatever `on_step` raises.
        """


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one decoding step added to one text.

    `text` can be shown now; it is empty while a character is incomplete or a stop string may have begun.
    `tokens_generated` counts all tokens of the text so far. `finish_reason` is None while the text goes on,
    `stop` after an end-of-text token or a stop string, `length` at `max_tokens`. `prompt_tokens` is set once
    by a decoder that did not know the number when the text was added. `error` ends this text and no other.
    """

    key: str
    text: str
    tokens_generated: int
    finish_reason: Literal["stop", "length"] | None = None
    prompt_tokens: int | None = None
    error: OurvidzError | None = None


class BatchDecoder(Protocol):
    """Decodes several texts together, one token per text and step. Texts are added and removed between
    steps."""

    def add(self, key: str, job: ChatJob) -> int:
        """Add a text under a unique key and return the number of its prompt tokens; 0 if that is not known
        yet and a `TextDelta` will report it.

        Raises `InvalidParameters` if prompt and `max_tokens` do not fit the model's context; the other texts
        are not affected.
        """

    def step(self) -> list[TextDelta]:
        """Decode one token for every unfinished text, or for some of them while prompts are being prefilled.
        Raises `OutOfMemory` if the batch is too large."""

    def remove(self, key: str) -> None:
        """Remove a text, finished or not. Idempotent."""


class TextPipeline(Protocol):
    """A language model."""

    def load(self) -> None:
        """Load the weights onto the device. Idempotent. Raises `ModelLoadError`."""

    def unload(self) -> None:
        """Free the weights. Idempotent."""

    def info(self) -> dict[str, Any]:
        """`name`, `inference_engine`, device, dtype, context length (tokens), whether it is loaded, and the
        load time (seconds)."""

    def new_decoder(self) -> BatchDecoder:
        """A decoder with no texts in it."""
