"""The story of a Wan job: a clip, or one picture."""

from __future__ import annotations

from typing import Any

from ourvidz import __version__
from ourvidz.errors import ReferenceFrameError
from ourvidz.jobs.job import VideoJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.jobs.videos import NEEDS
from ourvidz.media.provenance import DigitalSourceType
from ourvidz.pipelines.base import GeneratedVideo, ReferenceImages
from ourvidz.workflows.clips import keep_clip
from ourvidz.workflows.enhancement import wording
from ourvidz.workflows.services import Run, Services
from ourvidz.workflows.signing import Credentials


def generate_video(job: VideoJob, run: Run, use: Services) -> Outcome:
    """Look at the job once more, word its prompt, fetch its references, generate its clip, and store it."""
    use.check(job)
    words = wording(job, run)
    job = job.model_copy(update={"prompt": words.prompt})
    references = _references(job, use)
    if isinstance(references, ReferenceFrameError):
        clip = _without_references(job, references, run, use)
    else:
        clip = use.models.videos().generate(
            job, references=references, on_step=run.step, on_preview=run.preview
        )
    assets = keep_clip(clip, job, run, use.store, Credentials(use.signer, _source(clip), job_id=job.id))
    return Outcome(
        status="completed",
        assets=assets,
        metadata=_findings(clip, use) | words.told,
        enhanced_prompt=words.enhanced_prompt,
    )


def _references(job: VideoJob, use: Services) -> ReferenceImages | ReferenceFrameError:
    """The pictures the job's mode needs, or why one of them cannot be used.

    `ReferenceForbidden` when one belongs to somebody else: that job fails.
    """
    wanted = {name: getattr(job, f"{name}_reference") for name in NEEDS[job.reference_mode]}
    try:
        found = {
            name: use.references.resolve(written, user_id=job.user_id) for name, written in wanted.items()
        }
    except ReferenceFrameError as unusable:
        return unusable
    return ReferenceImages(**found)


def _without_references(job: VideoJob, why: ReferenceFrameError, run: Run, use: Services) -> GeneratedVideo:
    """What the prompt alone makes, with the reason."""
    plain = job.model_copy(update={"reference_mode": "none"})
    clip = use.models.videos().generate(plain, on_step=run.step, on_preview=run.preview)
    pipeline = "text_to_image" if job.frames == 1 else "text_to_video"
    return clip.without_reference(why, denoise_strength=job.denoise_strength, pipeline=pipeline)


def _source(clip: GeneratedVideo) -> DigitalSourceType:
    """Made by the model alone, or from somebody's picture."""
    steered = clip.metadata.get("reference_backend") is not None
    return "compositeWithTrainedAlgorithmicMedia" if steered else "trainedAlgorithmicMedia"


def _findings(clip: GeneratedVideo, use: Services) -> dict[str, Any]:
    """What the worker found out about the job."""
    return {
        **clip.metadata,
        **use.models.memory(),
        "generation_time": round(clip.seconds, 3),
        "worker_version": __version__,
    }
