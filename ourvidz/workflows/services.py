"""What a workflow depends on, each as a protocol; `wiring` supplies the implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ourvidz import __version__
from ourvidz.jobs.job import BaseJob
from ourvidz.pipelines.base import (
    DenoisingCheckpoints,
    GenerationResult,
    ImagePipeline,
    Snapshot,
    TextPipeline,
    VideoPipeline,
)
from ourvidz.prompts.encoder_texts import checked_by
from ourvidz.workflows.pictures import JobPictures, PictureGate

if TYPE_CHECKING:
    from ourvidz.media.provenance import DigitalSourceType
    from ourvidz.references.resolve import ResolvedReference
    from ourvidz.safety.gate import Gate
    from ourvidz.storage.store import Store


GPU_STAGES = ("load", "encode", "denoise", "decode", "other")
"""The stages of a job that GPU-seconds are reported for."""
HOUR_S = 3600.0
"""The time that a GPU's price is for."""


class Run(Protocol):
    """The running attempt, as a workflow sees it."""

    @property
    def enhancement_result(self) -> dict[str, Any] | None:
        """The document that `enhancement.enhance` returned for this job; None where none was recorded."""

    @property
    def checkpoints(self) -> DenoisingCheckpoints | None:
        """The checkpoints of the job's denoising; None where none are saved."""

    def step(self, done: int, total: int) -> None:
        """Report a finished step. Raises `Cancelled`, `JobTimeout`, or stops an attempt whose fence is
        lost."""

    def wait_for_device(self) -> None:
        """Report that the job waits for the memory of its GPU, which does not count towards its time limit;
        called again and again while it does. Raises what `step` raises."""

    def end_wait(self) -> None:
        """Report that the job has the memory that it waited for. Raises what `step` raises."""

    def preview(self, snapshot: Snapshot) -> None:
        """Offer a snapshot of the latents for a preview, which is rendered on another thread if one is due.
        Raises nothing."""

    def exclude(self, seconds: float) -> None:
        """Do not count this time towards the time limit: another job of the same batch took it."""

    def put(self, store: Store, key: str, data: bytes, content_type: str) -> None:
        """Store one file of this attempt, with retries. The fence is checked first."""


class Models(Protocol):
    """The loaded pipelines of a worker."""

    def warm(self) -> None:
        """Load all models of this worker. Raises `ModelLoadError`."""

    def images(self) -> ImagePipeline:
        """Return the loaded pipeline for SDXL jobs."""

    def videos(self) -> VideoPipeline:
        """Return the loaded pipeline for Wan jobs."""

    def texts(self, model: str) -> TextPipeline:
        """Return the loaded language model of that name: `qwen_instruct` or `qwen_base`."""

    def reload(self) -> None:
        """Unload all models and load them again."""

    def flush(self) -> None:
        """Drop encoded prompts and references, and free cached device memory that no model uses."""

    def info(self) -> dict[str, Any]:
        """Return what is loaded, by name: device, memory (MiB), and what else the pipelines report."""

    def memory(self) -> dict[str, Any]:
        """Return `vram_used`, `vram_total` (MiB), `vram_utilization` (0 to 1), `vram_used_gb`,
        `vram_total_gb` (GiB); zeros where there is no GPU."""


class DeviceShare(Protocol):
    """The device that this worker may share with others."""

    def hold(
        self,
        model: str,
        job: BaseJob,
        waiting: Callable[[], None],
        granted: Callable[[], None] = lambda: None,
    ) -> AbstractContextManager[None]:
        """Keep a model (`sdxl`, `wan`, or the name of a language model) on the device inside this context,
        with the memory that the job needs. `waiting` is called again and again while others have the memory;
        what it raises ends the wait. `granted` is called at the end of such a wait. A model that is moved in
        parts may wait several times. Raises `OutOfMemory` for more than the device can give."""

    def must_yield(self) -> bool:
        """Whether others wait for the device and this worker's turn is over: nothing new may join what it
        runs."""

    def bring(self, model: str, *, force: bool) -> bool:
        """Bring a model onto the device if enough memory is free; by force others must leave, even pinned
        ones. Returns whether it is there."""

    def free(self, model: str) -> bool:
        """Free the memory of a model, on the device and on the host. Returns whether it held any."""


class UnsharedDevice:
    """A device that this worker has for itself, or none; implements `DeviceShare`."""

    def hold(
        self,
        model: str,  # noqa: ARG002
        job: BaseJob,  # noqa: ARG002
        waiting: Callable[[], None],  # noqa: ARG002
        granted: Callable[[], None] = lambda: None,  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()

    def must_yield(self) -> bool:
        """Never."""
        return False

    def bring(self, model: str, *, force: bool) -> bool:  # noqa: ARG002
        """Nothing is moved."""
        return False

    def free(self, model: str) -> bool:  # noqa: ARG002
        """Nothing is moved."""
        return False


class References(Protocol):
    """The reference images of jobs."""

    def resolve(self, reference: str, *, user_id: str | None) -> ResolvedReference:
        """Return the upright RGB image that a job of `user_id` refers to. Raises `ReferenceForbidden` for
        another user's storage path, `ReferenceFrameError` when the image cannot be fetched or decoded."""


class Signer(Protocol):
    """Signs files with C2PA manifests."""

    def sign(self, data: bytes, mime: str, source: DigitalSourceType) -> bytes:
        """Return the file with a signed manifest inside. Raises `InternalError` when it cannot be signed."""


class Moderation(Protocol):
    """The operator's moderation service, for jobs with `sfw_mode`."""

    def check(self, text: str) -> None:
        """Raise `PolicyViolation` for a text that is refused."""


def take_gpu_seconds(models: Models) -> dict[str, float]:
    """Return the GPU-seconds by stage since the last call, for one job; builders of models need not measure
    them."""
    take = getattr(models, "take_gpu_seconds", None)
    return dict(take()) if take is not None else {}


def give_back_gpu_seconds(models: Models, seconds: Mapping[str, float]) -> None:
    """Count seconds that `take_gpu_seconds` returned for the next call: another job came in between."""
    give_back = getattr(models, "give_back_gpu_seconds", None)
    if give_back is not None:
        give_back(seconds)


def gpu_usage_metadata(seconds: Mapping[str, float], *, price: float | None) -> dict[str, Any]:
    """Return `gpu_seconds`, rounded and with their `total`, and with a `price` (per hour) `gpu_cost`; nothing
    for a job that used no GPU."""
    total = sum(seconds.values())
    if not total:
        return {}
    stages = {stage: round(seconds.get(stage, 0.0), 3) for stage in GPU_STAGES}
    metadata: dict[str, Any] = {"gpu_seconds": stages | {"total": round(total, 3)}}
    return metadata if price is None else metadata | {"gpu_cost": round(total * price / HOUR_S, 6)}


def tries_metadata(references: Iterable[ResolvedReference]) -> dict[str, int]:
    """Return `reference_tries`: how many requests the download took that took the most; nothing for a job
    whose references were not downloaded."""
    tries = [reference.tries for reference in references if reference.tries is not None]
    return {"reference_tries": max(tries)} if tries else {}


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a workflow uses besides the job and its run."""

    models: Models
    store: Store
    gate: Gate
    references: References
    device: DeviceShare = field(default_factory=UnsharedDevice)
    signer: Signer | None = None
    """None where no certificate is configured."""
    moderation: Moderation | None = None
    """None where no service is configured."""
    pictures: PictureGate | None = None
    """None where no classifier is configured."""
    gpu_price: float | None = None
    """Price of one GPU for an hour; None where none is configured."""

    def check(self, job: BaseJob) -> None:
        """Check a job's texts in the worker, after the check at submission. Raises `PolicyViolation`."""
        self.gate.check_job(job)

    def checked(self, job: BaseJob) -> AbstractContextManager[None]:
        """Check every text that a pipeline tokenizes inside this context, together with the texts of the job.
        The pipeline raises `PolicyViolation` then, before it encodes anything."""
        return checked_by(lambda texts: self.gate.check_job(job, *texts))

    def job_pictures(self, job: BaseJob) -> JobPictures:
        """Return what judges the pictures of a job."""
        return JobPictures(self.pictures, job.id)

    def metadata(self) -> dict[str, Any]:
        """Return the job metadata of this worker: its GPU memory and its version."""
        return self.models.memory() | {"worker_version": __version__}

    def result_metadata(self, result: GenerationResult) -> dict[str, Any]:
        """Return the job metadata of a finished generation: what the pipeline reports, the worker's, the
        seconds that it took, and what it used of the GPU."""
        measured = {"batch_size": result.batch_size, "generation_time": round(result.seconds, 3)}
        usage = gpu_usage_metadata(take_gpu_seconds(self.models), price=self.gpu_price)
        return result.metadata | self.metadata() | measured | usage
