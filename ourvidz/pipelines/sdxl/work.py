"""One SDXL job under way: what is finished, and what is told of it in the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image

from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.pipelines.oom_fallbacks import OomFallback
from ourvidz.pipelines.progress import ProgressReporter
from ourvidz.pipelines.sdxl import image_to_image
from ourvidz.pipelines.sdxl.conditioning import Conditioning
from ourvidz.pipelines.sdxl.image_to_image import Plan


@dataclass(slots=True)
class Work:
    """A job, and by seed the latents and pictures of it that are finished. They stay so when the rest is
    tried again.

    `size` is width and height in pixels as they are rendered, `guidance` what is used. `batch_size` is the
    largest number of images that were denoised in one batch, or copied without denoising.
    """

    job: ImageJob
    plan: Plan
    size: tuple[int, int]
    guidance: float
    hearing: ProgressReporter
    words: Conditioning | None = None
    latents: dict[int, torch.Tensor] = field(default_factory=dict)
    images: dict[int, Image] = field(default_factory=dict)
    batch_size: int = 0

    @property
    def negative_used(self) -> bool:
        """Whether the UNet was told what to keep away from."""
        encoded = self.words is not None and self.words.negative_tokens is not None
        return encoded and bool(self.job.negative_prompt)

    def waiting(self, at_once: int) -> list[list[int]]:
        """The seeds whose latents are not finished, `at_once` together."""
        return _parts([seed for seed in self.job.seeds if seed not in self.latents], at_once)

    def undecoded(self, rung: OomFallback) -> list[list[int]]:
        """The seeds whose pictures are not finished, those together that `rung` decodes at once."""
        width, height = self.size
        left = [seed for seed in self.job.seeds if seed not in self.images]
        return _parts(left, rung.decoded(width * height))

    def add_latents(self, seeds: list[int], latents: torch.Tensor) -> None:
        """Store the finished latents of one batch, (len(seeds), 4, height / 8, width / 8)."""
        self.latents.update(zip(seeds, torch.split(latents, 1), strict=True))
        self.batch_size = max(self.batch_size, len(seeds))

    def finish(self, seed: int, image: Image) -> None:
        """The picture of this seed is done: it is kept, and handed on."""
        self.images[seed] = image
        self.hearing.picture(self.job.seeds.index(seed), image)

    def _about_loras(self) -> dict[str, Any]:
        """The LoRA files of this job; nothing where it named none, or no model was asked."""
        if not self.job.loras or self.words is None:
            return {}
        return {"loras": [one.model_dump() for one in self.job.loras]}

    def pictures(self, rung: OomFallback, seconds: float) -> GeneratedImages:
        """What was made, and what the callback is told about it."""
        job, plan = self.job, self.plan
        return GeneratedImages(
            images=[self.images[seed] for seed in job.seeds],
            seeds=job.seeds,
            batch_size=self.batch_size,
            negative_prompt_used=self.negative_used,
            seconds=seconds,
            metadata={
                "batch_size": self.batch_size,
                "size_capped": self.size != (job.width, job.height),
                **({} if rung.name == "whole" else {"memory_rung": rung.name}),
                **_about_words(self.words),
                **self._about_loras(),
                **({} if plan.backend is None else {"reference_backend": plan.backend}),
            },
            asset_metadata={
                "steps": job.steps,
                "effective_steps": plan.steps,
                "guidance_scale": self.guidance,
                "batch_size": self.batch_size,
                **image_to_image.about(plan, job, negative_used=self.negative_used),
            },
        )


def _parts(seeds: list[int], size: int) -> list[list[int]]:
    return [seeds[first : first + size] for first in range(0, len(seeds), size)]


def _about_words(words: Conditioning | None) -> dict[str, Any]:
    """What became of the prompt; nothing did where a reference was copied as it is."""
    if words is None:
        return {"final_prompt_type": "string", "compel_success": False, "enhancement_strategy": "none"}
    return {
        "final_prompt_type": words.final_prompt_type,
        "compel_success": words.strategy == "compel",
        "enhancement_strategy": words.strategy,
        **({} if words.reason is None else {"compel_reason": words.reason}),
    }
