"""The SDXL pipeline: images from a prompt and an optional reference image.

Every job runs the same stages: check → encode → timesteps → latents → denoise → decode.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from typing import Any

import diffusers
import torch
from PIL.Image import Image

from ourvidz import log
from ourvidz.errors import I2IPipelineError, ModelLoadError, OurvidzError, OutOfMemory
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines import devices, sleeping
from ourvidz.pipelines.base import (
    DenoisingCheckpoints,
    GeneratedImages,
    OnImage,
    OnPreview,
    OnStep,
    Preempted,
    Snapshot,
)
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.conditions import Conditions
from ourvidz.pipelines.finite import check_finite
from ourvidz.pipelines.oom_fallbacks import OomFallback
from ourvidz.pipelines.progress import ProgressReporter
from ourvidz.pipelines.receipts import Environment
from ourvidz.pipelines.resumption import ResumableBatch, Resumption
from ourvidz.pipelines.sdxl import image_to_image, schedulers
from ourvidz.pipelines.sdxl.denoiser import Denoiser
from ourvidz.pipelines.sdxl.image_to_image import ReferencePlan
from ourvidz.pipelines.sdxl.model import UNLOADED_INFO, SDXLModel, load_model
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.prompt_encoding import PromptEmbeds
from ourvidz.pipelines.sdxl.state import GenerationState
from ourvidz.pipelines.sdxl.vae import SCALE
from ourvidz.pipelines.sizes import cap_size, check_multiple
from ourvidz.pipelines.stage_clock import StageClock, measured
from ourvidz.pipelines.tensor_cache import TensorCache

_log = log.get(__name__)

I2I_FAILED = "The image-to-image pass failed."
DEFAULT_OPTIONS = SDXLOptions()


class SDXLPipeline:
    """Runs one SDXL checkpoint; implements `ImagePipeline`. `cap` is the longest edge (px) that it renders;
    None is no cap. `cache` keeps encoded prompts and references."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        cap: int | None = None,
        device: torch.device | None = None,
        options: SDXLOptions = DEFAULT_OPTIONS,
        cache: TensorCache | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.cap = cap
        self.options = options
        self.device = device or devices.best_device()
        self.dtype = options.dtype_on(self.device)
        self.cache = cache or TensorCache()
        self.clock = StageClock()
        self.load_s: float | None = None
        self._loaded: SDXLModel | None = None
        self._asleep = False

    # -- loading
    @measured("load")
    def load(self) -> None:
        """Load the weights onto the device, or move them back from the host's memory. Idempotent. Raises
        `ModelLoadError`."""
        if self._loaded is not None:
            if self._asleep:
                sleeping.move_to_device(self._loaded.components(), self.device)
                self._asleep = False
            return
        started = time.perf_counter()
        self._loaded = load_model(self.checkpoint, self.device, self.dtype, self.options, self.cache)
        self.load_s = round(time.perf_counter() - started, 3)
        _log.info("sdxl_loaded", **self.info())

    def sleep(self) -> None:
        """Move the weights to the memory of the host, from where `load` brings them back. Idempotent."""
        if self._loaded is not None:
            self._asleep = True
            sleeping.move_to_host(self._loaded.components())

    def unload(self) -> None:
        """Free the weights. Idempotent."""
        self._loaded, self._asleep = None, False
        devices.free_memory()

    def info(self) -> dict[str, Any]:
        """The checkpoint, where it is loaded, and its options. Sizes are px, `memory_mib` is the weights."""
        return {
            "name": self.checkpoint.name,
            "kind": self.checkpoint.kind,
            "loaded": self._loaded is not None and not self._asleep,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "size_cap": self.cap,
            "load_seconds": self.load_s,
            **(UNLOADED_INFO if self._loaded is None else self._loaded.info()),
            **self.options.info(),
            "embedding_cache": self.cache.info(),
        }

    # -- one job
    @measured("other")
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
        """Generate the images of one job. Image k has the seed `job.seeds[k]` and equals, up to rounding, the
        image of a job with that seed alone. A job that `checkpoints` has a fitting state of is continued.

        Raises `OutOfMemory` when the last OOM fallback fails, `I2IPipelineError` when a pass with a reference
        fails, `InvalidParameters`, or whatever `on_step` or `on_image` raises. The pipeline stays usable.
        """
        self.check(job, reference)
        self.load()
        started, counts = time.perf_counter(), self.cache.counts
        progress = ProgressReporter(on_step, on_preview, on_image)
        state = self._start(job, reference, progress, checkpoints)
        tiled = self.options.vae_tiled or self._model.vae.must_tile(state.size)
        for fallback in state.fallbacks(vae_tiling=tiled):
            if self._try_stages(state, fallback):
                result = state.result(fallback, time.perf_counter() - started)
                return result.with_metadata(
                    embedding_cache=asdict(self.cache.counts.since(counts)),
                    receipt=state.receipt(result, fallback, self._environment()),
                )
            _log.warning("out_of_memory", job_id=job.id, rung=fallback.name, at_once=fallback.batch_size)
            # After the except block: until then the error's traceback keeps the tensors alive.
            devices.free_memory()
        raise OutOfMemory(f"Not enough memory for {job.num_images} of {job.width}x{job.height} px.")

    def _try_stages(self, state: GenerationState, fallback: OomFallback) -> bool:
        """Run the stages with this fallback. Returns False if memory ran out."""
        try:
            with self._model.vae.tiling(fallback.vae_tiling), self._model.with_loras(state.job.loras):
                self._run_stages(state, fallback)
            return True
        except Exception as error:
            if error is state.progress.callback_error or isinstance(error, (OurvidzError, Preempted)):
                raise
            if devices.is_out_of_memory(error):
                return False
            if state.plan.backend is None:
                raise
            _log.exception("image_to_image_failed", job_id=state.job.id)
        finally:
            self._pipe.maybe_free_model_hooks()
        raise I2IPipelineError(I2I_FAILED, field="reference")

    @torch.no_grad()
    def _run_stages(self, state: GenerationState, fallback: OomFallback) -> None:
        """The stages after the check, in the batches of this fallback, for what is not finished yet."""
        if state.plan.copied_image is not None:
            state.add_copies(state.plan.copied_image)
            return
        state.embeds = self.encode(state.job, guidance_scale=state.guidance_scale)
        batches = state.denoising_batches(fallback)
        total = state.resumed_batches + len(batches)
        for number, seeds in enumerate(batches, start=state.resumed_batches):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            scheduler, timesteps = self.timesteps(state.plan)
            batch = state.begin_batch(scheduler, generators, fallback, batches=number)
            latents = batch.latents
            if latents is None:
                latents = self.latents(state.size, state.plan, scheduler, timesteps, generators)
            denoiser = self._denoiser(state, state.embeds, scheduler, generators)
            state.progress.begin(len(timesteps), batch=number, batches=total, done=batch.step)
            state.add_latents(seeds, self.denoise(denoiser, latents, timesteps, state.progress, batch))
        for seeds in state.decoding_batches(fallback):
            images = self.decode(torch.cat([state.latents[seed] for seed in seeds]))
            for seed, image in zip(seeds, images, strict=True):
                state.add_image(seed, image)

    def check(self, job: ImageJob, reference: Image | None) -> None:
        """Raise `InvalidParameters` for a job that this pipeline cannot render."""
        image_to_image.check_reference(job, reference)
        check_multiple(job, SCALE)

    @measured("encode")
    def encode(self, job: ImageJob, *, guidance_scale: float) -> PromptEmbeds:
        """Encode the prompt and, with a guidance scale above 1, the negative prompt, with their weights."""
        return self._model.prompt_encoder.encode(
            job.prompt,
            job.negative_prompt,
            weighted=job.compel_enabled,
            weights=job.compel_weights,
            guided=guidance_scale > 1 and not self._model.has_guidance_input,
        )

    def timesteps(self, plan: ReferencePlan) -> tuple[Any, torch.Tensor]:
        """The scheduler, at its start, and the timesteps of the UNet calls. Second-order schedulers call the
        UNet twice per step."""
        scheduler = self._pipe.scheduler
        if plan.initial_image is None:
            return scheduler, schedulers.set_timesteps(scheduler, plan.steps, self.device)
        if plan.exact_copy:
            return schedulers.exact_copy_schedule(scheduler, plan.steps, plan.strength, self.device)
        scheduler = schedulers.evenly_spaced(scheduler)
        return scheduler, schedulers.set_img2img_timesteps(scheduler, plan.steps, plan.strength, self.device)

    @measured("encode")
    def latents(
        self,
        size: tuple[int, int],
        plan: ReferencePlan,
        scheduler: Any,
        timesteps: torch.Tensor,
        generators: list[torch.Generator],
    ) -> torch.Tensor:
        """The initial latents, (images, 4, height / 8, width / 8): noise, or the reference with noise.

        The noise is drawn on the CPU in float32 with one generator per image, so that a seed means the same
        image on every device and in every batch. `size` is width and height (px).
        """
        width, height = size
        unet = self._pipe.unet
        shape = (unet.config.in_channels, height // SCALE, width // SCALE)
        samples = [torch.randn(shape, generator=generator, dtype=torch.float32) for generator in generators]
        noise = torch.stack(samples).to(self.device, unet.dtype)
        if plan.initial_image is None:
            scaled: torch.Tensor = noise * scheduler.init_noise_sigma
            return scaled
        image_latents = self._model.vae.encode(plan.initial_image).to(noise).expand_as(noise)
        noisy: torch.Tensor = scheduler.add_noise(image_latents, noise, timesteps[:1].expand(len(noise)))
        return noisy

    @measured("denoise")
    def denoise(
        self,
        denoiser: Denoiser,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        progress: ProgressReporter,
        batch: ResumableBatch,
    ) -> torch.Tensor:
        """Run the remaining steps on one batch of latents; return the finished latents of the same shape.
        Raises `InternalError` if they are not finite."""
        for done, timestep in enumerate(timesteps[batch.step :], start=batch.step + 1):
            latents, estimate = denoiser.step(latents, timestep)
            progress.step(done, self._snapshot(estimate))
            batch.save_if_due(done, latents, steps_done=progress.steps_done)
        check_finite(latents, "UNet")
        return latents

    @measured("decode")
    def decode(self, latents: torch.Tensor) -> list[Image]:
        """The RGB images of finished latents (images, 4, height / 8, width / 8).

        Raises `InternalError` if the pixels are not finite.
        """
        return self._model.vae.decode(latents)

    # -- helpers of the stages
    def _environment(self) -> Environment:
        """What results depend on beside the job, for their receipts."""
        scheduler = type(self._pipe.scheduler).__name__
        return Environment(self._model.weights, self.device, self.dtype, scheduler, self.options.info())

    @property
    def _model(self) -> SDXLModel:
        if self._loaded is None:
            raise ModelLoadError(f"{self.checkpoint.name} is not loaded.")
        return self._loaded

    @property
    def _pipe(self) -> diffusers.StableDiffusionXLPipeline:
        return self._model.pipe

    def _start(
        self,
        job: ImageJob,
        reference: Image | None,
        progress: ProgressReporter,
        checkpoints: DenoisingCheckpoints | None,
    ) -> GenerationState:
        """The state of a new job: its size, reference plan and guidance scale in effect."""
        size = cap_size(job.width, job.height, cap=self.cap, multiple=SCALE)
        plan = image_to_image.plan_reference(
            job, reference, size, has_adapter=self._model.adapter is not None
        )
        # Few-step checkpoints are distilled with guidance: they run without it.
        distilled = self.options.few_steps is not None and not self._model.has_guidance_input
        conditions = Conditions(
            job,
            [reference],
            weights=self._model.weights.content,
            options=(self.options.info(), self.options.scheduler, self.cap),
            dtype=self.dtype,
            device=self.device,
        )
        resumption = Resumption(checkpoints, conditions)
        scale = 0.0 if distilled else job.guidance_scale
        return GenerationState(job, plan, size, scale, progress, resumption)

    def _denoiser(
        self, state: GenerationState, embeds: PromptEmbeds, scheduler: Any, generators: list[torch.Generator]
    ) -> Denoiser:
        adapter, plan = self._model.adapter, state.plan
        image_embeds = None
        if adapter is not None:
            adapter.set_scale(plan.reference_type, plan.adapter_scale)
            image = plan.reference if plan.backend == "ip_adapter" else None
            guided = embeds.negative_prompt_embeds is not None
            image_embeds = adapter.image_embeds(image, len(generators), guided=guided)
        return Denoiser(
            self._pipe,
            scheduler,
            embeds,
            guidance_scale=state.guidance_scale,
            generators=generators,
            size=state.size,
            image_embeds=image_embeds,
            attention=self.options.attention_context,
        )

    def _snapshot(self, latents: torch.Tensor) -> Snapshot | None:
        """A snapshot of the first image of these latents; None if previews are off."""
        previewer = self._model.previewer
        if previewer is None:
            return None
        return lambda: partial(previewer.render, latents[0].to("cpu", torch.float32, copy=True))
