"""State of one Wan job: finished latents and frames, and the result that is built from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import Any

import torch
from PIL.Image import Image

from ourvidz.jobs.job import VideoJob
from ourvidz.jobs.videos import REQUIRED_REFERENCES
from ourvidz.pipelines.base import GeneratedVideo, ReferenceImages, SourceVideo
from ourvidz.pipelines.oom_fallbacks import OomFallback, oom_fallbacks
from ourvidz.pipelines.progress import ProgressReporter
from ourvidz.pipelines.receipts import Environment, build_receipt
from ourvidz.pipelines.resumption import ResumableBatch, Resumption
from ourvidz.pipelines.sizes import RESIZE_POLICY
from ourvidz.pipelines.wan.reference_guidance import ReferencePlan
from ourvidz.pipelines.wan.vae import frames_to_generate


@dataclass(slots=True)
class GenerationState:
    """One job and what is finished of it. Finished latents, (1, channels, latent frames, rows, columns), are
    kept when the rest is repeated with the next OOM fallback.

    `job` has the guidance scale in effect, `size` is the rendered width and height (px).
    """

    job: VideoJob
    plan: ReferencePlan
    size: tuple[int, int]
    references: ReferenceImages
    progress: ProgressReporter
    resumption: Resumption
    source: SourceVideo | None = None
    latents: torch.Tensor | None = None
    frames: list[Image] = field(default_factory=list)

    def fallbacks(self) -> Iterator[OomFallback]:
        """The OOM fallbacks to try. A job that is resumed begins with the one that it had come to."""
        position = self.resumption.position
        fallbacks = oom_fallbacks(1)
        if position is None:
            return fallbacks
        return dropwhile(lambda fallback: fallback.name != position["fallback"], fallbacks)

    def begin(self, scheduler: Any, fallback: OomFallback) -> ResumableBatch:
        """Begin the denoising, or continue it. Its noise is drawn at once, so no generator has a state."""
        return self.resumption.batch(scheduler, (), {"fallback": fallback.name})

    def result(self, fallback: OomFallback, seconds: float) -> GeneratedVideo:
        """The result of the finished job, which `fallback` finished after `seconds` seconds."""
        job, backend = self.job, self.plan.reference_backend
        return GeneratedVideo(
            frames=self.frames,
            fps=job.fps,
            seed=job.seed,
            frames_generated=frames_to_generate(job.frames),
            seconds=seconds,
            negative_prompt_used=self._negative_prompt_used,
            metadata={
                "size_capped": self.size != (job.width, job.height),
                "final_prompt_type": "string",
                "compel_success": False,
                **({} if fallback.name == "whole" else {"memory_rung": fallback.name}),
                **({} if backend is None else {"reference_backend": backend}),
                **self.resumption.metadata(),
            },
            asset_metadata={
                "steps": job.steps,
                "effective_steps": self.plan.steps,
                "guidance_scale": job.guidance_scale,
                **({} if backend is None else self._reference_metadata()),
            },
        )

    def receipt(
        self, result: GeneratedVideo, fallback: OomFallback, environment: Environment
    ) -> dict[str, Any]:
        """The receipt of the finished job."""
        names = REQUIRED_REFERENCES[self.job.reference_mode]
        references = [getattr(self.references, name) for name in names]
        return build_receipt(
            environment,
            used_weights={self.plan.model},
            seeds=[self.job.seed],
            batch_size=1,
            memory_rung=fallback.name,
            references=[image for image in references if image is not None],
            results=[result.frames],
        )

    @property
    def _negative_prompt_used(self) -> bool:
        return bool(self.job.negative_prompt) and self.job.guidance_scale > 1

    def _reference_metadata(self) -> dict[str, Any]:
        """Asset metadata about the references."""
        return {
            "denoise_strength": self.job.denoise_strength,
            "pipeline": "img2img" if self.job.frames == 1 else "image_to_video",
            "resize_policy": RESIZE_POLICY,
            "negative_prompt_used": self._negative_prompt_used,
        }
