"""Wan: text, and pictures to follow, to clips.

One job climbs the same stairs every time: check → encode → timesteps → latents → denoise → decode.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from PIL.Image import Image

from ourvidz import log
from ourvidz.errors import InvalidParameters, ModelLoadError, OutOfMemory
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines import devices, wan_references, wan_solvers
from ourvidz.pipelines.base import Clip, OnStep, ReferencePictures
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.loading import reading, weights_mib
from ourvidz.pipelines.sizes import RESIZE_POLICY, capped
from ourvidz.pipelines.wan_frames import Codec, frames_to_generate, pictures
from ourvidz.pipelines.wan_placement import Part, Placement
from ourvidz.pipelines.wan_references import Plan, Steering

_log = log.get(__name__)

MULTIPLE_PX = 16
"""Latents are eight times smaller, and the transformer reads them in patches of two by two."""
PROMPT_TOKENS = 512
"""What Wan was trained with. A checkpoint whose tokenizer takes fewer was trained with fewer, and would hear
the padding of the rest."""

NO_REFERENCES = ReferencePictures()
ON_DEVICE = Placement()


@dataclass(frozen=True, slots=True)
class Words:
    """A prompt as the transformer reads it, (1, tokens, width).

    The negative one is None where nothing guides away from it.
    """

    prompt: torch.Tensor
    negative: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A solver at its start, and the noise level before every step and after the last."""

    solver: Any
    levels: list[float]

    @property
    def steps(self) -> int:
        """How often the model is asked."""
        return len(self.levels) - 1


class WanPipeline:
    """A warm Wan checkpoint. `cap` is the longest edge in pixels that it renders; None means any."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        cap: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        placement: Placement = ON_DEVICE,
    ) -> None:
        self.checkpoint = checkpoint
        self.cap = cap
        self.device = device or devices.best_device()
        # Wan's text encoder overflows in float16.
        self.dtype = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        self.load_s: float | None = None
        self._placement = placement
        self._pipe: diffusers.WanPipeline | None = None

    # -- warm and cold
    def load(self) -> None:
        """Bring the weights to the device. Safe to call twice. `ModelLoadError` says what is wrong."""
        if self._pipe is not None:
            return
        started = time.perf_counter()
        with reading(self.checkpoint):
            pipe = self._read()
            self._placement.settle(pipe, self.device)
            self._pipe = pipe
        self.load_s = round(time.perf_counter() - started, 3)
        _log.info("wan_loaded", **self.info())

    def unload(self) -> None:
        """Take the weights off the device. Safe to call twice."""
        self._pipe = None
        devices.free_memory()

    def info(self) -> dict[str, Any]:
        """What is loaded and where. `size_cap` is pixels, `memory_mib` is what the weights take.

        `native_size` is None: a Wan checkpoint does not say what it was trained on.
        """
        return {
            "name": self.checkpoint.name,
            "kind": self.checkpoint.kind,
            "loaded": self._pipe is not None,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "native_size": None,
            "size_cap": self.cap,
            "load_seconds": self.load_s,
            "memory_mib": 0 if self._pipe is None else weights_mib(self._pipe.components.values()),
        }

    # -- one job
    def generate(
        self, job: VideoJob, *, references: ReferencePictures | None = None, on_step: OnStep
    ) -> Clip:
        """Make the clip of one job, exactly as many frames as it asks for.

        `OutOfMemory`, `InvalidParameters`, or whatever `on_step` raises; the pipeline stays usable.
        """
        given = references or NO_REFERENCES
        self.check(job, given)
        self.load()
        started = time.perf_counter()
        try:
            frames = self._climb(job, given, on_step)
        except (RuntimeError, MemoryError) as error:
            if not devices.is_out_of_memory(error):
                raise
        else:
            return self._clip(job, frames, time.perf_counter() - started)
        # Only here, after the except block: its traceback held the tensors that are to be freed.
        devices.free_memory()
        raise OutOfMemory(f"Not enough memory for {job.frames} frames of {job.width}x{job.height} px.")

    @torch.no_grad()
    def _climb(self, job: VideoJob, references: ReferencePictures, on_step: OnStep) -> list[Image]:
        """The stairs after the check, from words to as many pictures as were asked for."""
        plan = wan_references.plan(job)
        words = self.encode(job)
        schedule = self.timesteps(job, plan)
        steering = self.latents(job, plan, references)
        latents = self.denoise(job, words, schedule, steering, on_step=on_step)
        return pictures(self.decode(latents)[: job.frames])

    def check(self, job: VideoJob, references: ReferencePictures) -> None:
        """Refuse what this pipeline cannot render."""
        for side in ("width", "height"):
            if getattr(job, side) % MULTIPLE_PX:
                raise InvalidParameters(
                    f"{job.width}x{job.height} px is not a multiple of {MULTIPLE_PX}.",
                    field=side,
                    rule=f"multiples of {MULTIPLE_PX}",
                    value=getattr(job, side),
                )
        wan_references.need_all(job, references)

    def encode(self, job: VideoJob) -> Words:
        """The prompt and, where guidance needs it, the negative prompt: the empty text if there is none."""
        with self._at_work("text_encoder") as where:
            prompt, negative = self._loaded.encode_prompt(
                prompt=job.prompt,
                negative_prompt=job.negative_prompt,
                do_classifier_free_guidance=job.guidance_scale > 1,
                max_sequence_length=min(PROMPT_TOKENS, self._loaded.tokenizer.model_max_length),
                device=where,
                dtype=self.dtype,
            )
        return Words(prompt.to(self.device), None if negative is None else negative.to(self.device))

    def timesteps(self, job: VideoJob, plan: Plan) -> Schedule:
        """The job's solver on its noise levels. SDEdit takes fewer steps than were asked for."""
        levels = wan_solvers.noise_levels(plan.steps, shift=job.shift, start=plan.start)
        config = self._loaded.scheduler.config
        return Schedule(wan_solvers.solver(job.solver, config, levels, self.device), levels)

    def latents(self, job: VideoJob, plan: Plan, references: ReferencePictures) -> Steering:
        """The noise and what is known of the clip, both (1, channels, latent frames, height / 8, width / 8).

        The noise is drawn on the CPU in single precision, so that a seed means the same clip on every device.
        """
        with self._at_work("vae"):
            codec = Codec(self._loaded.vae)
            shape = codec.shape(job.frames, *self._size(job))
            known = wan_references.known_latents(job, plan, references, codec, shape)
        generator = torch.Generator().manual_seed(job.seed)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(self.device)
        return Steering(plan, known, noise)

    def denoise(
        self, job: VideoJob, words: Words, schedule: Schedule, steering: Steering, *, on_step: OnStep
    ) -> torch.Tensor:
        """From noise to the latents of the clip."""
        latents = steering.begin(schedule.levels[0])
        on_step(0, schedule.steps)
        with self._at_work("transformer"):
            for step, timestep in enumerate(schedule.solver.timesteps):
                velocity = self._velocity(latents, timestep, words, job.guidance_scale)
                velocity = steering.velocity(velocity, step=step)
                latents = schedule.solver.step(velocity, timestep, latents, return_dict=False)[0]
                latents = steering.after(latents, step=step, level=schedule.levels[step + 1])
                on_step(step + 1, schedule.steps)
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """From latents to all frames that were generated: (frames, 3, height, width), -1 to 1."""
        with self._at_work("vae"):
            return Codec(self._loaded.vae).decode(latents)

    # -- what the stairs stand on
    @property
    def _loaded(self) -> diffusers.WanPipeline:
        if self._pipe is None:
            raise ModelLoadError(f"{self.checkpoint.name} is not loaded.")
        return self._pipe

    def _read(self) -> diffusers.WanPipeline:
        """The pipeline from disk. No hub, and no pickles: they can run code."""
        path = self.checkpoint.path
        options = {"use_safetensors": True, "local_files_only": True}
        # In half precision a reference does not come back as it was.
        vae = diffusers.AutoencoderKLWan.from_pretrained(
            path, subfolder="vae", dtype=torch.float32, **options
        )
        return diffusers.WanPipeline.from_pretrained(path, vae=vae, dtype=self.dtype, **options)

    def _at_work(self, part: Part) -> AbstractContextManager[torch.device]:
        return self._placement.at_work(self._loaded, part, self.device)

    def _size(self, job: VideoJob) -> tuple[int, int]:
        return capped(job.width, job.height, cap=self.cap, multiple=MULTIPLE_PX)

    def _velocity(
        self, latents: torch.Tensor, timestep: torch.Tensor, words: Words, guidance: float
    ) -> torch.Tensor:
        """What the model takes for noise minus clip, guided away from the negative prompt."""
        toward = self._ask(latents, timestep, words.prompt, "cond")
        if words.negative is None:
            return toward
        away = self._ask(latents, timestep, words.negative, "uncond")
        return away + guidance * (toward - away)

    def _ask(
        self, latents: torch.Tensor, timestep: torch.Tensor, words: torch.Tensor, cache: str
    ) -> torch.Tensor:
        """One pass of the transformer, in its own precision. `cache` keeps the two prompts' caches apart."""
        transformer = self._loaded.transformer
        with transformer.cache_context(cache):
            said = transformer(
                hidden_states=latents.to(self.dtype),
                timestep=timestep.expand(1),
                encoder_hidden_states=words,
                return_dict=False,
            )[0]
        velocity: torch.Tensor = said.float()
        return velocity

    def _clip(self, job: VideoJob, frames: list[Image], seconds: float) -> Clip:
        """What was made, and what the callback is told about it."""
        plan = wan_references.plan(job)
        return Clip(
            frames=frames,
            fps=job.fps,
            seed=job.seed,
            frames_generated=frames_to_generate(job.frames),
            seconds=seconds,
            metadata={
                "batch_size": 1,
                "size_capped": self._size(job) != (job.width, job.height),
                "final_prompt_type": "text",
                "compel_success": False,
                **({} if plan.backend is None else {"reference_backend": plan.backend}),
            },
            asset_metadata={
                "steps": job.steps,
                "effective_steps": plan.steps,
                "guidance_scale": job.guidance_scale,
                "batch_size": 1,
                **_about_references(job, plan),
            },
        )


def _about_references(job: VideoJob, plan: Plan) -> dict[str, Any]:
    """What an asset says about how its references were used."""
    if plan.backend is None:
        return {}
    return {
        "denoise_strength": job.denoise_strength,
        "pipeline": "img2img" if job.frames == 1 else "image_to_video",
        "resize_policy": RESIZE_POLICY,
        "negative_prompt_used": bool(job.negative_prompt) and job.guidance_scale > 1,
    }
