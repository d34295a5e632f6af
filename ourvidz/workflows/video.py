"""The workflow of Wan jobs: a clip, or a single image."""

from __future__ import annotations

from ourvidz.errors import ReferenceFrameError
from ourvidz.jobs.job import VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.jobs.videos import REQUIRED_REFERENCES
from ourvidz.pipelines.base import GeneratedVideo, ReferenceImages
from ourvidz.references.resolve import ResolvedReference
from ourvidz.workflows.assets import upload_video
from ourvidz.workflows.enhancement import resolve_prompt
from ourvidz.workflows.pictures import JobPictures
from ourvidz.workflows.services import Run, Services, tries_metadata
from ourvidz.workflows.signing import AssetSigner, source_type


def generate_video(job: VideoJob, run: Run, services: Services) -> Outcome:
    """Check the texts, take the enhanced prompt, resolve the references, generate the clip and store it.

    References that cannot be used are reported in the metadata, and the clip is generated from the prompt
    alone. Raises `ReferenceForbidden` for another user's reference.
    """
    services.check(job)
    resolved = resolve_prompt(job, run)
    # With the texts of the job as it was sent: the enhanced prompt replaces one of them.
    checked, pictures = services.checked(job), services.job_pictures(job)
    job = job.model_copy(update={"prompt": resolved.prompt})
    references = _resolve_references(job, services, pictures)
    with checked:
        if isinstance(references, ReferenceFrameError):
            result = _generate_without_references(job, references, run, services, pictures)
        else:
            images = ReferenceImages(**{name: resolved.image for name, resolved in references.items()})
            generated = _generate(job, images, run, services, pictures)
            result = generated.with_metadata(**tries_metadata(references.values()))
    has_reference = result.metadata.get("reference_backend") is not None
    pictures.check_frames(result.frames)
    signer = AssetSigner(services.signer, source_type(has_reference), job_id=job.id)
    return Outcome(
        status="completed",
        assets=upload_video(result, job, run, services.store, signer),
        metadata=services.result_metadata(result) | resolved.metadata | pictures.metadata(),
        enhanced_prompt=resolved.enhanced_prompt,
    )


def _resolve_references(
    job: VideoJob, services: Services, pictures: JobPictures
) -> dict[str, ResolvedReference] | ReferenceFrameError:
    """Resolve the references that the job's mode needs, by their name. Returns the error when one cannot be
    used."""
    try:
        references = {
            name: services.references.resolve(getattr(job, f"{name}_reference"), user_id=job.user_id)
            for name in REQUIRED_REFERENCES[job.reference_mode]
        }
    except ReferenceFrameError as error:
        return error
    pictures.check("reference", *(resolved.image for resolved in references.values()))
    return references


def _generate(
    job: VideoJob,
    references: ReferenceImages | None,
    run: Run,
    services: Services,
    pictures: JobPictures,
) -> GeneratedVideo:
    with services.device.hold("wan", job, run.wait_for_device, run.end_wait):
        return services.models.videos().generate(
            job,
            references=references,
            on_step=run.step,
            on_preview=pictures.judging(run.preview),
            checkpoints=run.checkpoints,
        )


def _generate_without_references(
    job: VideoJob, error: ReferenceFrameError, run: Run, services: Services, pictures: JobPictures
) -> GeneratedVideo:
    """Generate from the prompt alone; the metadata says that the references were not used, and why."""
    text_only = job.model_copy(update={"reference_mode": "none"})
    result = _generate(text_only, None, run, services, pictures)
    pipeline = "text_to_image" if job.frames == 1 else "text_to_video"
    return result.without_reference(error, denoise_strength=job.denoise_strength, pipeline=pipeline)
