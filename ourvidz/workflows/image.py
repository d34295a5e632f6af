"""The workflow of SDXL jobs: images from a prompt, with or without a reference."""

from __future__ import annotations

from collections.abc import Callable

from PIL.Image import Image

from ourvidz.errors import FallbackError, I2IPipelineError, ReferenceFrameError
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.workflows.assets import AssetUploader
from ourvidz.workflows.pictures import JobPictures
from ourvidz.workflows.services import Run, Services, tries_metadata
from ourvidz.workflows.signing import AssetSigner, source_type


def generate_images(job: ImageJob, run: Run, services: Services) -> Outcome:
    """Check the texts, resolve the reference, generate the images and store them. Pictures are judged
    before they are used or stored.

    A reference that cannot be used is reported in the metadata, and the images are generated from the prompt
    alone. Raises that `FallbackError` for a job without a prompt, `ReferenceForbidden` for another user's
    reference.
    """
    services.check(job)
    pictures = services.job_pictures(job)
    if job.reference is None:
        return _generate(job, None, run, services, pictures)
    outcome = _with_reference(job, job.reference, run, services, pictures)
    # Outside the `except` block: the traceback would keep the failed pass's tensors on the device.
    if isinstance(outcome, FallbackError):
        return _without_reference(job, outcome, run, services, pictures)
    return outcome


def _with_reference(
    job: ImageJob, reference: str, run: Run, services: Services, pictures: JobPictures
) -> Outcome | FallbackError:
    """Generate from the reference. Returns the error when it cannot be used."""
    try:
        resolved = services.references.resolve(reference, user_id=job.user_id)
        pictures.check("reference", resolved.image)
        tries = tries_metadata([resolved])

        def report_tries(result: GeneratedImages) -> GeneratedImages:
            return result.with_metadata(**tries)

        return _generate(job, resolved.image, run, services, pictures, report=report_tries)
    except (ReferenceFrameError, I2IPipelineError) as error:
        return error.with_traceback(None)


def _without_reference(
    job: ImageJob, error: FallbackError, run: Run, services: Services, pictures: JobPictures
) -> Outcome:
    """Generate from the prompt alone; the metadata says that the reference was not used, and why."""
    if not job.prompt:
        raise error

    def report_fallback(result: GeneratedImages) -> GeneratedImages:
        return result.without_reference(
            error, denoise_strength=job.denoise_strength, pipeline="text_to_image"
        )

    text_only = job.model_copy(update={"reference": None})
    return _generate(text_only, None, run, services, pictures, report=report_fallback)


def _generate(
    job: ImageJob,
    reference: Image | None,
    run: Run,
    services: Services,
    pictures: JobPictures,
    *,
    report: Callable[[GeneratedImages], GeneratedImages] = lambda result: result,
) -> Outcome:
    """Generate the images and store each as soon as it is decoded. `report` may change the result's
    metadata."""
    signer = AssetSigner(services.signer, source_type(reference is not None), job_id=job.id)
    with AssetUploader(job, run, services.store, signer, pictures) as uploader:
        with services.device.hold("sdxl", job, run.wait_for_device, run.end_wait), services.checked(job):
            result = services.models.images().generate(
                job,
                reference=reference,
                on_step=run.step,
                on_preview=pictures.judging(run.preview),
                on_image=uploader.upload,
                checkpoints=run.checkpoints,
            )
        result = report(result)
        assets = uploader.finish(result)
    return Outcome(
        status="completed", assets=assets, metadata=services.result_metadata(result) | pictures.metadata()
    )
