"""SDXL: text to pictures.

One job climbs the same stairs every time: check → encode → timesteps → latents → denoise → decode.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from PIL.Image import Image

from ourvidz import log
from ourvidz.errors import InvalidParameters, ModelLoadError, OutOfMemory
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines import devices
from ourvidz.pipelines.base import OnStep, Pictures
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sizes import capped

_log = log.get(__name__)

MIB = 1 << 20

NO_WEIGHTS = "Prompt weights are not available in this version: the plain prompt was used."


@dataclass(frozen=True, slots=True)
class Conditioning:
    """A prompt as the UNet reads it: `tokens` is (1, tokens, width), `pooled` is (1, width).

    The negative pair is None where nothing guides away from it.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor
    negative_tokens: torch.Tensor | None
    negative_pooled: torch.Tensor | None

    def repeated(self, pictures: int) -> dict[str, torch.Tensor | None]:
        """The same words for every picture of a batch, under the names diffusers gives them."""
        named = {
            "prompt_embeds": self.tokens,
            "pooled_prompt_embeds": self.pooled,
            "negative_prompt_embeds": self.negative_tokens,
            "negative_pooled_prompt_embeds": self.negative_pooled,
        }
        return {
            name: None if value is None else value.repeat_interleave(pictures, dim=0)
            for name, value in named.items()
        }


class SDXLPipeline:
    """A warm SDXL checkpoint. `cap` is the longest edge in pixels that it renders; None means any."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        cap: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.cap = cap
        self.device = device or devices.best_device()
        self.dtype = dtype or devices.best_dtype(self.device)
        self.load_s: float | None = None
        self._pipe: diffusers.StableDiffusionXLPipeline | None = None

    # -- warm and cold
    def load(self) -> None:
        """Bring the weights to the device. Safe to call twice. `ModelLoadError` says what is wrong."""
        if self._pipe is not None:
            return
        started = time.perf_counter()
        devices.quiet_libraries()
        try:
            pipe = self._read().to(self.device)
        except Exception as error:
            # Library errors of every kind end here: OSError, ValueError, SafetensorError, RuntimeError.
            raise ModelLoadError(
                f"{self.checkpoint.path} could not be loaded: {_first_line(error)}"
            ) from error
        pipe.set_progress_bar_config(disable=True)
        self._pipe = pipe
        self.load_s = round(time.perf_counter() - started, 3)
        _log.info("sdxl_loaded", **self.info())

    def unload(self) -> None:
        """Take the weights off the device. Safe to call twice."""
        self._pipe = None
        devices.free_memory()

    def info(self) -> dict[str, Any]:
        """What is loaded and where. Sizes are pixels, `memory_mib` is what the weights take."""
        return {
            "name": self.checkpoint.name,
            "kind": self.checkpoint.kind,
            "loaded": self._pipe is not None,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "native_size": self._native_size(),
            "size_cap": self.cap,
            "load_seconds": self.load_s,
            "memory_mib": self._memory_mib(),
        }

    # -- one job
    def generate(self, job: ImageJob, *, reference: Image | None = None, on_step: OnStep) -> Pictures:
        """Make the pictures of one job; picture k has seed `job.seed + k` and is what a job with that seed
        alone would get, up to numeric noise.

        `OutOfMemory`, `InvalidParameters`, or whatever `on_step` raises; the pipeline stays usable.
        """
        self.check(job, reference)
        self.load()
        started = time.perf_counter()
        try:
            images = self._climb(job, on_step)
        except (RuntimeError, MemoryError) as error:
            if not devices.is_out_of_memory(error):
                raise
        else:
            return self._pictures(job, images, time.perf_counter() - started)
        finally:
            self._loaded.maybe_free_model_hooks()
        # Only here, after the except block: its traceback held the tensors that are to be freed.
        devices.free_memory()
        raise OutOfMemory(f"Not enough memory for {job.num_images} of {job.width}x{job.height} px.")

    @torch.no_grad()
    def _climb(self, job: ImageJob, on_step: OnStep) -> list[Image]:
        """The stairs after the check, from words to pictures."""
        conditioning = self.encode(job)
        total = self.timesteps(job)
        generators = [torch.Generator().manual_seed(seed) for seed in _seeds(job)]
        latents = self.latents(job, generators)
        latents = self.denoise(job, conditioning, latents, generators, total=total, on_step=on_step)
        return self.decode(latents)

    def check(self, job: ImageJob, reference: Image | None) -> None:
        """Refuse what this pipeline cannot render."""
        if reference is not None:
            raise InvalidParameters("This pipeline takes no reference.", field="reference")
        if job.width % 8 or job.height % 8:
            raise InvalidParameters(
                f"{job.width}x{job.height} px is not a multiple of 8.", field="width", rule="multiples of 8"
            )

    def encode(self, job: ImageJob) -> Conditioning:
        """The prompt and, where guidance needs it, the negative prompt."""
        tokens, negative_tokens, pooled, negative_pooled = self._loaded.encode_prompt(
            prompt=job.prompt,
            negative_prompt=job.negative_prompt,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=job.guidance_scale > 1,
        )
        return Conditioning(tokens, pooled, negative_tokens, negative_pooled)

    def timesteps(self, job: ImageJob) -> int:
        """Set the scheduler; how often the UNet will run. Second-order schedulers run it twice a step."""
        scheduler = self._loaded.scheduler
        scheduler.set_timesteps(job.effective_steps, device=self.device)
        return len(scheduler.timesteps)

    def latents(self, job: ImageJob, generators: list[torch.Generator]) -> torch.Tensor:
        """Noise of shape (pictures, 4, height / 8, width / 8).

        Drawn on the CPU in single precision, one generator a picture, so that a seed means the same picture
        on every device and in every batch.
        """
        width, height = capped(job.width, job.height, cap=self.cap)
        unet = self._loaded.unet
        shape = (unet.config.in_channels, height // 8, width // 8)
        noise = [torch.randn(shape, generator=generator, dtype=torch.float32) for generator in generators]
        return torch.stack(noise).to(self.device, unet.dtype)

    def denoise(
        self,
        job: ImageJob,
        conditioning: Conditioning,
        latents: torch.Tensor,
        generators: list[torch.Generator],
        *,
        total: int,
        on_step: OnStep,
    ) -> torch.Tensor:
        """From noise to finished latents of the same shape, all pictures as one batch."""
        pictures, _, rows, columns = latents.shape

        def after_step(_pipe: object, index: int, _timestep: object, kept: dict[str, Any]) -> dict[str, Any]:
            on_step(index + 1, total)
            return kept

        on_step(0, total)
        finished: torch.Tensor = self._loaded(
            **conditioning.repeated(pictures),
            latents=latents,
            # Schedulers that add noise between the steps go on drawing from each picture's own generator.
            generator=generators,
            width=columns * 8,
            height=rows * 8,
            num_inference_steps=job.effective_steps,
            guidance_scale=job.guidance_scale,
            callback_on_step_end=after_step,
            output_type="latent",
        ).images
        return finished

    def decode(self, latents: torch.Tensor) -> list[Image]:
        """From latents to RGB pictures, one at a time: the VAE takes more memory a picture than the UNet."""
        pipe = self._loaded
        if pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast:
            pipe.vae.to(torch.float32)  # SDXL's VAE overflows in half precision: black pictures
        scaled = latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor
        pixels = [pipe.vae.decode(one, return_dict=False)[0] for one in scaled.split(1)]
        return [image for one in pixels for image in pipe.image_processor.postprocess(one, output_type="pil")]

    # -- what the stairs stand on
    @property
    def _loaded(self) -> diffusers.StableDiffusionXLPipeline:
        if self._pipe is None:
            raise ModelLoadError(f"{self.checkpoint.name} is not loaded.")
        return self._pipe

    def _read(self) -> diffusers.StableDiffusionXLPipeline:
        """The pipeline from disk. No hub, and no pickles: they can run code."""
        found = self.checkpoint
        options = {"dtype": self.dtype, "local_files_only": True, "add_watermarker": False}
        if found.kind == "single file":
            return diffusers.StableDiffusionXLPipeline.from_single_file(
                str(found.path), config=str(found.config), **options
            )
        return diffusers.StableDiffusionXLPipeline.from_pretrained(
            found.path, use_safetensors=True, variant=found.variant, **options
        )

    def _native_size(self) -> int | None:
        """Edge in pixels of the square the weights were trained on; None before they are loaded."""
        if self._pipe is None:
            return None
        return int(self._pipe.unet.config.sample_size * self._pipe.vae_scale_factor)

    def _memory_mib(self) -> int:
        """What the weights take on the device."""
        if self._pipe is None:
            return 0
        modules = [part for part in self._pipe.components.values() if isinstance(part, torch.nn.Module)]
        taken = sum(weight.nbytes for module in modules for weight in module.parameters())
        return round(taken / MIB)

    def _pictures(self, job: ImageJob, images: list[Image], seconds: float) -> Pictures:
        """What was made, and what the callback is told about it."""
        compel: dict[str, Any] = {"enhancement_strategy": "none"}
        if job.compel_enabled:
            compel = {"enhancement_strategy": "fallback", "compel_reason": NO_WEIGHTS}
        return Pictures(
            images=images,
            seeds=_seeds(job),
            seconds=seconds,
            metadata={
                "batch_size": job.num_images,
                "size_capped": (job.width, job.height) != capped(job.width, job.height, cap=self.cap),
                "final_prompt_type": "text",
                "compel_success": False,
                **compel,
            },
            asset_metadata={
                "steps": job.steps,
                "effective_steps": job.effective_steps,
                "guidance_scale": job.guidance_scale,
                "batch_size": job.num_images,
            },
        )


def _seeds(job: ImageJob) -> list[int]:
    """Picture k of a job has its seed plus k."""
    return [job.seed + k for k in range(job.num_images)]


def _first_line(error: Exception) -> str:
    """The first line of a library's error, which is often a page long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
