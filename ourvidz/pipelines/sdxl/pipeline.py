"""SDXL: text, and a picture to begin with, to pictures.

One job climbs the same stairs every time: check → encode → timesteps → latents → denoise → decode.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from PIL.Image import Image

from ourvidz import log
from ourvidz.errors import I2IPipelineError, InvalidParameters, ModelLoadError, OurvidzError, OutOfMemory
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines import devices, oom_fallbacks
from ourvidz.pipelines.base import GeneratedImages, OnImage, OnPreview, OnStep, PreviewRenderer
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.oom_fallbacks import OomFallback
from ourvidz.pipelines.progress import ProgressReporter
from ourvidz.pipelines.sdxl import image_to_image, schedulers
from ourvidz.pipelines.sdxl.conditioning import Conditioning
from ourvidz.pipelines.sdxl.denoiser import Denoiser
from ourvidz.pipelines.sdxl.image_to_image import Plan
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.vae import SCALE
from ourvidz.pipelines.sdxl.warm import COLD, WarmSDXL, warm
from ourvidz.pipelines.sdxl.work import Work
from ourvidz.pipelines.sizes import MULTIPLE_PX, capped

_log = log.get(__name__)

I2I_FAILED = "The image-to-image pass failed."
NO_OPTIONS = SDXLOptions()


class SDXLPipeline:
    """A warm SDXL checkpoint. `cap` is the longest edge in pixels that it renders; None means any."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        cap: int | None = None,
        device: torch.device | None = None,
        options: SDXLOptions = NO_OPTIONS,
    ) -> None:
        self.checkpoint = checkpoint
        self.cap = cap
        self.options = options
        self.device = device or devices.best_device()
        self.dtype = options.dtype_on(self.device)
        self.load_s: float | None = None
        self._warm: WarmSDXL | None = None

    # -- warm and cold
    def load(self) -> None:
        """Bring the weights to the device. Safe to call twice. `ModelLoadError` says what is wrong."""
        if self._warm is not None:
            return
        started = time.perf_counter()
        self._warm = warm(self.checkpoint, self.device, self.dtype, self.options)
        self.load_s = round(time.perf_counter() - started, 3)
        _log.info("sdxl_loaded", **self.info())

    def unload(self) -> None:
        """Take the weights off the device. Safe to call twice."""
        self._warm = None
        devices.free_memory()

    def info(self) -> dict[str, Any]:
        """What is loaded, where, and how it runs. Sizes are pixels, `memory_mib` is what the weights take."""
        return {
            "name": self.checkpoint.name,
            "kind": self.checkpoint.kind,
            "loaded": self._warm is not None,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "size_cap": self.cap,
            "load_seconds": self.load_s,
            **(COLD if self._warm is None else self._warm.info()),
            **self.options.info(),
        }

    # -- one job
    def generate(
        self,
        job: ImageJob,
        *,
        reference: Image | None = None,
        on_step: OnStep,
        on_preview: OnPreview | None = None,
        on_image: OnImage | None = None,
    ) -> GeneratedImages:
        """Make the pictures of one job; picture k has seed `job.seeds[k]` and is what a job with that seed
        alone would get, up to numeric noise.

        `OutOfMemory` when all rungs of the ladder are climbed, `I2IPipelineError` when the pass with a
        reference fails, `InvalidParameters`, or whatever `on_step` or `on_image` raises; the pipeline stays
        usable.
        """
        self.check(job, reference)
        self.load()
        started = time.perf_counter()
        work = self._work(job, reference, ProgressReporter(on_step, on_preview, on_image))
        for rung in oom_fallbacks.rungs(job.num_images):
            if self._fits(work, rung):
                return work.pictures(rung, time.perf_counter() - started)
            _log.warning("out_of_memory", job_id=job.id, rung=rung.name, at_once=rung.at_once)
            # Only here, after the except block: its traceback held the tensors that are to be freed.
            devices.free_memory()
        raise OutOfMemory(f"Not enough memory for {job.num_images} of {job.width}x{job.height} px.")

    def _fits(self, work: Work, rung: OomFallback) -> bool:
        """Whether the job could be finished with the memory there is; it is then."""
        try:
            with self._loaded.codec.tiled(rung.tiled), self._loaded.with_loras(work.job.loras):
                self._climb(work, rung)
            return True
        except Exception as error:
            if error is work.hearing.stopped_by or isinstance(error, OurvidzError):
                raise
            if devices.is_out_of_memory(error):
                return False
            if work.plan.backend is None:
                raise
            _log.exception("image_to_image_failed", job_id=work.job.id)
        finally:
            self._pipe.maybe_free_model_hooks()
        raise I2IPipelineError(I2I_FAILED, field="reference")

    @torch.no_grad()
    def _climb(self, work: Work, rung: OomFallback) -> None:
        """The stairs after the check, from words to pictures, as many at a time as `rung` says."""
        if work.plan.copied is not None:
            work.hearing.begin(0)
            for seed in work.job.seeds:
                work.finish(seed, work.plan.copied.copy())
            work.batch_size = len(work.job.seeds)
            return
        work.words = self.encode(work.job, guidance=work.guidance)
        parts = work.waiting(rung.at_once)
        for number, seeds in enumerate(parts):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            scheduler, timesteps = self.timesteps(work.plan)
            latents = self.latents(work.size, work.plan, scheduler, timesteps, generators)
            denoiser = self._denoiser(work, work.words, scheduler, generators)
            work.hearing.begin(len(timesteps), part=number, parts=len(parts))
            latents = self.denoise(denoiser, latents, timesteps, work.hearing)
            work.add_latents(seeds, latents)
        for seeds in work.undecoded(rung):
            images = self.decode(torch.cat([work.latents[seed] for seed in seeds]))
            for seed, image in zip(seeds, images, strict=True):
                work.finish(seed, image)

    def check(self, job: ImageJob, reference: Image | None) -> None:
        """Refuse what this pipeline cannot render."""
        image_to_image.need_reference(job, reference)
        if job.width % MULTIPLE_PX or job.height % MULTIPLE_PX:
            raise InvalidParameters(
                f"{job.width}x{job.height} px is not a multiple of 8.", field="width", rule="multiples of 8"
            )

    def encode(self, job: ImageJob, *, guidance: float) -> Conditioning:
        """The prompt and, where guidance needs it, the negative prompt, with their weights."""
        return self._loaded.words.encode(
            job.prompt,
            job.negative_prompt,
            weighted=job.compel_enabled,
            weights=job.compel_weights,
            guided=guidance > 1 and not self._loaded.takes_guidance,
        )

    def timesteps(self, plan: Plan) -> tuple[Any, torch.Tensor]:
        """The scheduler at its start, and when the UNet will be asked. Second-order schedulers ask twice a
        step."""
        scheduler = self._pipe.scheduler
        if plan.latents_from is None:
            return scheduler, schedulers.from_noise(scheduler, plan.steps, self.device)
        if plan.exact:
            return schedulers.for_copy(scheduler, plan.steps, plan.denoise, self.device)
        scheduler = schedulers.evenly(scheduler)
        return scheduler, schedulers.from_picture(scheduler, plan.steps, plan.denoise, self.device)

    def latents(
        self,
        size: tuple[int, int],
        plan: Plan,
        scheduler: Any,
        timesteps: torch.Tensor,
        generators: list[torch.Generator],
    ) -> torch.Tensor:
        """Noise, or the reference under noise, of shape (pictures, 4, height / 8, width / 8).

        Drawn on the CPU in single precision, one generator a picture, so that a seed means the same picture
        on every device and in every batch.
        """
        width, height = size
        unet = self._pipe.unet
        shape = (unet.config.in_channels, height // SCALE, width // SCALE)
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float32) for generator in generators]
        noise = torch.stack(drawn).to(self.device, unet.dtype)
        if plan.latents_from is None:
            begun: torch.Tensor = noise * scheduler.init_noise_sigma
            return begun
        known = self._loaded.codec.encode(plan.latents_from).to(noise).expand_as(noise)
        noisy: torch.Tensor = scheduler.add_noise(known, noise, timesteps[:1].expand(len(noise)))
        return noisy

    def denoise(
        self, denoiser: Denoiser, latents: torch.Tensor, timesteps: torch.Tensor, hearing: ProgressReporter
    ) -> torch.Tensor:
        """From noise to finished latents of the same shape, all pictures as one batch."""
        for done, timestep in enumerate(timesteps, start=1):
            latents, guess = denoiser.step(latents, timestep)
            hearing.step(done, self._take(guess))
        return latents

    def decode(self, latents: torch.Tensor) -> list[Image]:
        """From finished latents to RGB pictures."""
        return self._loaded.codec.decode(latents)

    # -- what the stairs stand on
    @property
    def _loaded(self) -> WarmSDXL:
        if self._warm is None:
            raise ModelLoadError(f"{self.checkpoint.name} is not loaded.")
        return self._warm

    @property
    def _pipe(self) -> diffusers.StableDiffusionXLPipeline:
        return self._loaded.pipe

    def _work(self, job: ImageJob, reference: Image | None, hearing: ProgressReporter) -> Work:
        size = capped(job.width, job.height, cap=self.cap)
        plan = image_to_image.plan(job, reference, size, adapter=self._loaded.adapter is not None)
        # Checkpoints that were distilled to few steps have their guidance inside.
        inside = self.options.few_steps is not None and not self._loaded.takes_guidance
        return Work(job, plan, size, 0.0 if inside else job.guidance_scale, hearing)

    def _denoiser(
        self, work: Work, words: Conditioning, scheduler: Any, generators: list[torch.Generator]
    ) -> Denoiser:
        adapter, plan = self._loaded.adapter, work.plan
        embeds = None
        if adapter is not None:
            adapter.listen(plan.kind, plan.scale)
            heard = plan.reference if plan.backend == "ip_adapter" else None
            embeds = adapter.embeds(heard, len(generators), guided=words.negative_tokens is not None)
        return Denoiser(
            self._pipe,
            scheduler,
            words,
            guidance=work.guidance,
            generators=generators,
            size=work.size,
            image_embeds=embeds,
            attending=self.options.attending,
        )

    def _take(self, guess: torch.Tensor) -> Callable[[], PreviewRenderer] | None:
        """Copies the first of these latents, to be drawn elsewhere; None where colours are not known."""
        colours = self._loaded.colours
        if colours is None:
            return None
        return lambda: partial(colours.picture, guess[0].to("cpu", torch.float32, copy=True))
