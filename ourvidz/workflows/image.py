"""The story of an image job."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from PIL.Image import Image

from ourvidz import __version__
from ourvidz.errors import FallbackError, I2IPipelineError, ReferenceFrameError
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.media.provenance import DigitalSourceType
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.workflows.assets import AssetUploader
from ourvidz.workflows.services import Run, Services
from ourvidz.workflows.signing import Credentials


def generate_images(job: ImageJob, run: Run, use: Services) -> Outcome:
    """Look at the job once more, fetch its reference, generate its pictures, and store them."""
    use.check(job)
    made = _generate(job, run, use)
    return Outcome(status="completed", assets=made.assets, metadata=_findings(made.pictures, use))


class _Made(NamedTuple):
    """Pictures, and the assets they are stored as."""

    pictures: GeneratedImages
    assets: tuple[Asset, ...]


def _generate(job: ImageJob, run: Run, use: Services) -> _Made:
    """The pictures of the job; of its prompt alone where its reference is of no use."""
    if job.reference is None:
        return _painted(job, None, run, use)
    made = _with_reference(job, job.reference, run, use)
    # The error has been let go of by now: its traceback held what the failed pass had on the device.
    return _without_reference(job, made, run, use) if isinstance(made, FallbackError) else made


def _painted(
    job: ImageJob,
    reference: Image | None,
    run: Run,
    use: Services,
    *,
    told: Callable[[GeneratedImages], GeneratedImages] = lambda pictures: pictures,
) -> _Made:
    """Generate pictures and store each as soon as it is finished. `told` completes what is said of them."""
    credentials = Credentials(use.signer, _source(reference), job_id=job.id)
    with AssetUploader(job, run, use.store, credentials) as keeper:
        pictures = use.models.images().generate(
            job, reference=reference, on_step=run.step, on_preview=run.preview, on_image=keeper.take
        )
        pictures = told(pictures)
        return _Made(pictures, keeper.assets(pictures))


def _with_reference(job: ImageJob, written: str, run: Run, use: Services) -> _Made | FallbackError:
    """The pictures, or why the reference could not be used.

    `ReferenceForbidden` when it belongs to somebody else: that job fails.
    """
    try:
        return _painted(job, use.references.resolve(written, user_id=job.user_id), run, use)
    except (ReferenceFrameError, I2IPipelineError) as failed:
        return failed.with_traceback(None)


def _without_reference(job: ImageJob, why: FallbackError, run: Run, use: Services) -> _Made:
    """What the prompt alone makes, with the reason. Raises it when there is no prompt to fall back to."""
    if not job.prompt:
        raise why
    plain = job.model_copy(update={"reference": None})
    return _painted(plain, None, run, use, told=partial(_fallen_back, job=job, why=why))


def _fallen_back(pictures: GeneratedImages, *, job: ImageJob, why: FallbackError) -> GeneratedImages:
    """The pictures of a job whose reference was of no use, with the reason."""
    return pictures.without_reference(why, denoise_strength=job.denoise_strength, pipeline="text_to_image")


def _source(reference: Image | None) -> DigitalSourceType:
    """Made by the model alone, or from somebody's picture."""
    return "trainedAlgorithmicMedia" if reference is None else "compositeWithTrainedAlgorithmicMedia"


def _findings(pictures: GeneratedImages, use: Services) -> dict[str, Any]:
    """What the worker found out about the job."""
    return {
        **pictures.metadata,
        **use.models.memory(),
        "generation_time": round(pictures.seconds, 3),
        "worker_version": __version__,
    }
