"""State of one SDXL job: finished latents and images, and the result that is built from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import Any

import torch
from PIL.Image import Image

from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.pipelines.oom_fallbacks import OomFallback, oom_fallbacks
from ourvidz.pipelines.progress import ProgressReporter
from ourvidz.pipelines.receipts import Environment, build_receipt
from ourvidz.pipelines.resumption import ResumableBatch, Resumption
from ourvidz.pipelines.sdxl import image_to_image
from ourvidz.pipelines.sdxl.image_to_image import ReferencePlan
from ourvidz.pipelines.sdxl.prompt_encoding import PromptEmbeds


@dataclass(slots=True)
class GenerationState:
    """One job and what is finished of it. Finished latents and images are kept when the rest is repeated with
    the next OOM fallback.

    `size` is the rendered width and height (px), `guidance_scale` the one in effect. `latents`, each
    (1, 4, height / 8, width / 8), and `images` are by seed. `batch_size` is the largest number of images that
    were denoised, or copied without denoising, in one batch; `resumed_batches` is the number of batches that
    an earlier attempt has finished.
    """

    job: ImageJob
    plan: ReferencePlan
    size: tuple[int, int]
    guidance_scale: float
    progress: ProgressReporter
    resumption: Resumption
    embeds: PromptEmbeds | None = None
    latents: dict[int, torch.Tensor] = field(default_factory=dict)
    images: dict[int, Image] = field(default_factory=dict)
    batch_size: int = 0
    resumed_batches: int = 0

    @property
    def negative_prompt_used(self) -> bool:
        """Whether the UNet received the job's negative prompt."""
        encoded = self.embeds is not None and self.embeds.negative_prompt_embeds is not None
        return encoded and bool(self.job.negative_prompt)

    def fallbacks(self, *, vae_tiling: bool = False) -> Iterator[OomFallback]:
        """The OOM fallbacks to try; `vae_tiling`: those with a tiled VAE. A job that is resumed begins with
        the one that it had come to, and with the latents that were finished."""
        position = self.resumption.position
        if position is None:
            return oom_fallbacks(self.job.num_images, vae_tiling=vae_tiling)
        fallbacks = oom_fallbacks(self.job.num_images)
        self.latents = {seed: self.resumption.tensor(_latents_name(seed)) for seed in position["finished"]}
        self.batch_size, self.resumed_batches = position["batch_size"], position["batches"]
        reached = position["fallback"]
        return dropwhile(lambda fallback: [fallback.name, fallback.batch_size] != reached, fallbacks)

    def begin_batch(
        self, scheduler: Any, generators: list[torch.Generator], fallback: OomFallback, *, batches: int
    ) -> ResumableBatch:
        """Begin a batch, or continue it; `batches` batches of the job are finished."""
        position = {
            "fallback": [fallback.name, fallback.batch_size],
            "finished": list(self.latents),
            "batch_size": self.batch_size,
            "batches": batches,
        }
        finished = {_latents_name(seed): latents for seed, latents in self.latents.items()}
        return self.resumption.batch(scheduler, generators, position, finished)

    def denoising_batches(self, fallback: OomFallback) -> list[list[int]]:
        """The seeds without finished latents, in batches."""
        return _batches([seed for seed in self.job.seeds if seed not in self.latents], fallback.batch_size)

    def decoding_batches(self, fallback: OomFallback) -> list[list[int]]:
        """The seeds without finished images, in batches."""
        width, height = self.size
        remaining = [seed for seed in self.job.seeds if seed not in self.images]
        return _batches(remaining, fallback.decode_batch_size(width * height))

    def add_latents(self, seeds: list[int], latents: torch.Tensor) -> None:
        """Store the finished latents of one batch, (len(seeds), 4, height / 8, width / 8)."""
        self.latents.update(zip(seeds, torch.split(latents, 1), strict=True))
        self.batch_size = max(self.batch_size, len(seeds))

    def add_image(self, seed: int, image: Image) -> None:
        """Store a finished image and report it."""
        self.images[seed] = image
        self.progress.image(self.job.seeds.index(seed), image)

    def add_copies(self, image: Image) -> None:
        """Finish the job with a copy of `image` for every seed."""
        self.progress.begin(0)
        self.batch_size = len(self.job.seeds)
        for seed in self.job.seeds:
            self.add_image(seed, image.copy())

    def result(self, fallback: OomFallback, seconds: float) -> GeneratedImages:
        """The result of the finished job, which `fallback` finished after `seconds` seconds."""
        job, plan = self.job, self.plan
        return GeneratedImages(
            images=[self.images[seed] for seed in job.seeds],
            seeds=job.seeds,
            seconds=seconds,
            batch_size=self.batch_size,
            negative_prompt_used=self.negative_prompt_used,
            metadata={
                "size_capped": self.size != (job.width, job.height),
                **({} if fallback.name == "whole" else {"memory_rung": fallback.name}),
                **_prompt_metadata(self.embeds),
                **self._lora_metadata(),
                **self.resumption.metadata(),
                **({} if plan.backend is None else {"reference_backend": plan.backend}),
            },
            asset_metadata={
                "steps": job.steps,
                "effective_steps": plan.steps,
                "guidance_scale": self.guidance_scale,
                **image_to_image.reference_metadata(
                    plan, job, negative_prompt_used=self.negative_prompt_used
                ),
            },
        )

    def receipt(
        self, result: GeneratedImages, fallback: OomFallback, environment: Environment
    ) -> dict[str, Any]:
        """The receipt of the finished job."""
        requested = {f"job lora {lora.name}" for lora in self.job.loras}
        by_jobs = {label for label in environment.weights.added if label.startswith("job lora ")}
        return build_receipt(
            environment,
            used_weights=environment.weights.added.keys() - by_jobs | requested,
            seeds=self.job.seeds,
            batch_size=self.batch_size,
            memory_rung=fallback.name,
            references=[] if self.plan.reference is None else [self.plan.reference],
            results=[[image] for image in result.images],
        )

    def _lora_metadata(self) -> dict[str, Any]:
        """The LoRAs of the job; empty if it has none or if no model ran."""
        if not self.job.loras or self.embeds is None:
            return {}
        return {"loras": [lora.model_dump() for lora in self.job.loras]}


def _latents_name(seed: int) -> str:
    """The name of finished latents in a checkpoint."""
    return f"finished.{seed}"


def _batches(seeds: list[int], size: int) -> list[list[int]]:
    """The seeds in batches of at most `size`."""
    return [seeds[first : first + size] for first in range(0, len(seeds), size)]


def _prompt_metadata(embeds: PromptEmbeds | None) -> dict[str, Any]:
    """Metadata about the prompt's encoding; None if it was not encoded because the reference was copied."""
    if embeds is None:
        return {"final_prompt_type": "string", "compel_success": False, "enhancement_strategy": "none"}
    return {
        "final_prompt_type": embeds.final_prompt_type,
        "compel_success": embeds.strategy == "compel",
        "enhancement_strategy": embeds.strategy,
        **({} if embeds.reason is None else {"compel_reason": embeds.reason}),
    }
