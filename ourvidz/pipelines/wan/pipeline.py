"""The Wan pipeline: clips from a prompt and optional reference images.

Every job runs the same stages: check → encode → timesteps → latents → denoise → decode.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from typing import Any

import torch

from ourvidz import log
from ourvidz.errors import OutOfMemory
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines import devices
from ourvidz.pipelines.base import (
    DenoisingCheckpoints,
    GeneratedVideo,
    OnPreview,
    OnStep,
    ReferenceImages,
    Snapshot,
    SourceVideo,
)
from ourvidz.pipelines.conditions import Conditions
from ourvidz.pipelines.finite import check_finite
from ourvidz.pipelines.oom_fallbacks import OomFallback
from ourvidz.pipelines.progress import ProgressReporter
from ourvidz.pipelines.receipts import Environment
from ourvidz.pipelines.resumption import ResumableBatch, Resumption
from ourvidz.pipelines.sizes import cap_size, check_multiple
from ourvidz.pipelines.stage_clock import measured
from ourvidz.pipelines.wan import calibration, reference_guidance, solvers
from ourvidz.pipelines.wan.caches import StepCache
from ourvidz.pipelines.wan.calibration import MagnitudeCurve
from ourvidz.pipelines.wan.components import PartName
from ourvidz.pipelines.wan.extra_inputs import extra_inputs
from ourvidz.pipelines.wan.previews import ClipPreviewer, fit_clip_previewer
from ourvidz.pipelines.wan.prompt_encoding import PromptEmbeds, encode_prompts
from ourvidz.pipelines.wan.reference_guidance import ReferenceGuidance, ReferencePlan
from ourvidz.pipelines.wan.solvers import Schedule
from ourvidz.pipelines.wan.state import GenerationState
from ourvidz.pipelines.wan.vae import VideoVAE, tiling, to_images
from ourvidz.pipelines.wan.velocity import predict_velocity
from ourvidz.pipelines.wan.weights import WanWeights

_log = log.get(__name__)

SIZE_MULTIPLE_PX = 16
"""A latent is 8 px wide and high, and the transformer reads patches of two by two latents."""
NO_REFERENCES = ReferenceImages()
ENCODED: tuple[PartName, ...] = ("text_encoder",)
"""The parts that a job needs no more once its prompt is encoded."""


class WanPipeline(WanWeights):
    """Runs one Wan checkpoint; implements `VideoPipeline`. The arguments are those of `WanWeights`."""

    def info(self) -> dict[str, Any]:
        """The checkpoint, where it is loaded, and its options. `size_cap` is px, `memory_mib` is the weights
        in memory, of the device or of the host.

        `native_size` is None: a Wan checkpoint does not contain the size it was trained on.
        """
        return {
            "name": self.checkpoint.name,
            "kind": self.checkpoint.kind,
            "loaded": self.components.loaded and not self.components.asleep,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "native_size": None,
            "size_cap": self.cap,
            "load_seconds": self.load_s,
            "memory_mib": self.components.memory_mib(),
            "model": self.model,
            "vace": None if self.vace is None else self.vace.name,
            "checkpoints_off": self._cache.obstacle(self.components.pipe.transformer)
            if self.components.loaded
            else None,
            **self.options.info(),
            "embedding_cache": self.cache.info(),
        }

    # -- one job
    @measured("other")
    def generate(
        self,
        job: VideoJob,
        *,
        references: ReferenceImages | None = None,
        source: SourceVideo | None = None,
        on_step: OnStep,
        on_preview: OnPreview | None = None,
        checkpoints: DenoisingCheckpoints | None = None,
    ) -> GeneratedVideo:
        """Generate the clip of one job, with exactly as many frames as it asks for. `source` is used by VACE
        only. A job that `checkpoints` has a fitting state of is continued.

        Raises `OutOfMemory` when the last OOM fallback fails, `InvalidParameters`, or whatever `on_step`
        raises. The pipeline stays usable.
        """
        references = references or NO_REFERENCES
        self.check(job, references)
        self.load()
        started, paused_s, counts = time.perf_counter(), self.clock.paused_s, self.cache.counts
        plan = self._plan(job, source)
        state = GenerationState(
            self._with_effective_guidance(job),
            plan,
            self._size(job),
            references,
            ProgressReporter(on_step, on_preview),
            self._resumption(job, plan, references, None if source else checkpoints),
            source,
        )
        for fallback in state.fallbacks():
            if self._try_stages(state, fallback):
                waited_s = self.clock.paused_s - paused_s
                result = state.result(fallback, time.perf_counter() - started - waited_s)
                return result.with_metadata(
                    embedding_cache=asdict(self.cache.counts.since(counts)),
                    receipt=state.receipt(result, fallback, self._environment(job)),
                )
            _log.warning("out_of_memory", job_id=job.id, rung=fallback.name)
            # After the except block: until then the error's traceback keeps the tensors alive.
            devices.free_memory()
        raise OutOfMemory(f"Not enough memory for {job.frames} frames of {job.width}x{job.height} px.")

    def _try_stages(self, state: GenerationState, fallback: OomFallback) -> bool:
        """Run the stages with this fallback. Returns False if memory ran out."""
        tiled = fallback.vae_tiling or self.options.tiled
        try:
            with tiling(self.components.pipe.vae, tiled, state.size):
                self._run_stages(state, fallback)
        except (RuntimeError, MemoryError) as error:
            if error is state.progress.callback_error or not devices.is_out_of_memory(error):
                raise
            return False
        return True

    @torch.no_grad()
    def _run_stages(self, state: GenerationState, fallback: OomFallback) -> None:
        """The stages after the check, for what is not finished yet."""
        job, plan = state.job, state.plan
        if state.latents is None:
            embeds = self.encode(job)
            schedule = self.timesteps(job, plan)
            guidance = self.latents(job, plan, state.references, state.source)
            batch = state.begin(schedule.scheduler, fallback)
            state.latents = self.denoise(job, embeds, schedule, guidance, batch, progress=state.progress)
        frames = self.decode(state.latents)
        state.frames = to_images(reference_guidance.cut_surplus_frames(job, plan, frames))

    def check(self, job: VideoJob, references: ReferenceImages) -> None:
        """Raise `InvalidParameters` for a job that this pipeline cannot render."""
        check_multiple(job, SIZE_MULTIPLE_PX)
        reference_guidance.check_references(job, references)

    @measured("encode")
    def encode(self, job: VideoJob) -> PromptEmbeds:
        """Encode the prompt and, with a guidance scale above 1, the negative prompt, which may be empty."""
        pipe = self.components.pipe
        texts = [job.prompt, job.negative_prompt or ""] if job.guidance_scale > 1 else [job.prompt]
        embeds = encode_prompts(
            pipe,
            texts,
            in_use=lambda: self.components.in_use("text_encoder"),
            device=self.device,
            dtype=self.dtype,
            cache=self.cache,
            weights=self._weights.name,
        )
        return PromptEmbeds(embeds[0], embeds[1] if len(embeds) > 1 else None)

    def timesteps(self, job: VideoJob, plan: ReferencePlan) -> Schedule:
        """The job's solver at its start. With SDEdit it runs fewer steps than the job asks for."""
        sigmas = solvers.flow_sigmas(plan.steps, shift=job.shift, start=plan.start)
        config = self.components.pipe.scheduler.config
        return Schedule(solvers.build_solver(job.solver, config, sigmas, self.device), sigmas)

    @measured("encode")
    def latents(
        self,
        job: VideoJob,
        plan: ReferencePlan,
        references: ReferenceImages,
        source: SourceVideo | None = None,
    ) -> ReferenceGuidance:
        """The initial noise, the known latents and the model's extra inputs; noise and latents are
        (1, channels, latent frames, height / 8, width / 8).

        The noise is drawn on the CPU in float32, so that a seed means the same clip on every device.
        """
        uses_vae = plan.model != "t2v" or job.reference_mode != "none"
        with self.components.in_use("vae", finished=ENCODED) if uses_vae else nullcontext():
            vae = VideoVAE(
                self.components.pipe.vae, self.cache, weights=self._weights.name, device=self.device
            )
            shape = vae.shape(job.frames, *self._size(job))
            known = reference_guidance.known_latents(job, plan, references, vae, shape)
            inputs = extra_inputs(
                plan.model,
                self.components.transformer(plan),
                source or reference_guidance.source_video(job, references),
                vae,
                shape,
                encode_images=self.components.encode_images,
            )
        generator = torch.Generator().manual_seed(job.seed)
        noise = torch.randn(inputs.latents_shape(shape), generator=generator, dtype=torch.float32)
        return ReferenceGuidance(plan, known, noise.to(self.device), inputs)

    @measured("denoise")
    def denoise(
        self,
        job: VideoJob,
        embeds: PromptEmbeds,
        schedule: Schedule,
        guidance: ReferenceGuidance,
        batch: ResumableBatch | None = None,
        *,
        progress: ProgressReporter,
    ) -> torch.Tensor:
        """Run the remaining steps; return the clip's latents, (1, channels, latent frames, rows, columns).
        Raises `InternalError` if they are not finite."""
        cache, scheduler, sigmas = self._cache, schedule.scheduler, schedule.sigmas
        first = 0 if batch is None else batch.step
        resumed = None if batch is None else batch.latents
        latents = guidance.initial_latents(sigmas[0]) if resumed is None else resumed
        transformer = self.components.transformer(guidance.plan)
        progress.begin(schedule.steps, done=first)
        with ExitStack() as stack:
            stack.enter_context(self.components.in_use("transformer", guidance.plan, finished=ENCODED))
            stack.enter_context(cache.enabled(transformer, sigmas, guided=embeds.negative is not None))
            for step, timestep in enumerate(scheduler.timesteps[first:], start=first):
                cache.set_timestep(float(timestep))
                inputs = guidance.model_inputs(latents, step=step, dtype=self.dtype)
                with self.options.attention_context():
                    velocity = predict_velocity(
                        transformer,
                        inputs,
                        timestep,
                        embeds,
                        job.guidance_scale,
                        joint_batch=cache.needs_joint_batch,
                    )
                velocity = guidance.fix_velocity(velocity, step=step)
                snapshot = self._snapshot(latents, velocity, sigmas[step])
                latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
                latents = guidance.fix_latents(latents, step=step, sigma=sigmas[step + 1])
                progress.step(step + 1, snapshot)
                if batch is not None:
                    batch.save_if_due(step + 1, latents, steps_done=progress.steps_done)
        check_finite(latents, "transformer")
        return latents[:, :, guidance.extra_inputs.reference_frames :]

    @measured("decode")
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """All generated frames of finished latents: (frames, 3, height, width) from -1 to 1. Raises
        `InternalError` if they are not finite."""
        with self.components.in_use("vae", finished=ENCODED):
            frames = VideoVAE(self.components.pipe.vae).decode(latents)
        check_finite(frames, "VAE")
        return frames

    # -- helpers of the stages
    def _environment(self, job: VideoJob) -> Environment:
        """What the results of a job depend on beside it, for its receipt."""
        return Environment(self._weights, self.device, self.dtype, job.solver, self.options.info())

    def _plan(self, job: VideoJob, source: SourceVideo | None) -> ReferencePlan:
        """The reference plan of a job, on the VACE checkpoint if the job has references and one is set."""
        use_vace = self.vace is not None and job.reference_mode != "none"
        model = "vace" if use_vace else self.model
        return reference_guidance.plan_references(job, model, has_source=source is not None)

    def _resumption(
        self,
        job: VideoJob,
        plan: ReferencePlan,
        references: ReferenceImages,
        checkpoints: DenoisingCheckpoints | None,
    ) -> Resumption:
        conditions = Conditions(
            job,
            [references.single, references.start, references.end],
            weights=self._weights.content,
            options=(self.options.info(), self.cap, self.components.placement),
            dtype=self.dtype,
            device=self.device,
        )
        obstacle = self._cache.obstacle(self.components.transformer(plan))
        return Resumption(checkpoints, conditions, obstacle=obstacle)

    def _forget(self) -> None:
        """Drop the previewer and the step cache."""
        self._previewer: ClipPreviewer | None = None
        self._cache = StepCache()
        self._is_calibrated = False

    def _prepare(self) -> None:
        """Fit the previewer and prepare the step cache, before the first job."""
        if self._is_calibrated:
            return
        options = self.options
        if options.previews:
            with self.components.in_use("vae"):
                self._previewer = fit_clip_previewer(VideoVAE(self.components.pipe.vae))
        if self.model == "t2v":
            magnitudes = None
            if options.cache == "mag":
                with self.components.in_use("transformer"):
                    name = calibration.fingerprint(self.components.pipe.transformer)
                magnitudes = calibration.load_or_measure(options.calibrations, name, self._measure_magnitudes)
            self._cache = StepCache(options.cache, threshold=options.threshold, magnitudes=magnitudes)
        self._is_calibrated = True

    @torch.no_grad()
    def _measure_magnitudes(self) -> MagnitudeCurve:
        """How much the transformer's blocks change their input at each noise level of a text-to-video job."""
        job = calibration.CALIBRATION_JOB
        plan = reference_guidance.plan_references(job)
        schedule = self.timesteps(job, plan)
        embeds, guidance = self.encode(job), self.latents(job, plan, NO_REFERENCES)
        with calibration.recording_changes(self.components.pipe.transformer) as logs:
            self.denoise(job, embeds, schedule, guidance, progress=ProgressReporter(lambda *_: None))
        return MagnitudeCurve(tuple(schedule.sigmas[:-1]), tuple(logs))

    def _snapshot(self, latents: torch.Tensor, velocity: torch.Tensor, sigma: float) -> Snapshot | None:
        """A snapshot of the clip's middle frame; None if previews are off."""
        return None if self._previewer is None else self._previewer.snapshot(latents, velocity, sigma)

    def _with_effective_guidance(self, job: VideoJob) -> VideoJob:
        """Few-step checkpoints are distilled with guidance: they run without it."""
        return job.model_copy(update={"guidance_scale": 1.0}) if self.options.few_steps else job

    def _size(self, job: VideoJob) -> tuple[int, int]:
        """Rendered width and height (px)."""
        return cap_size(job.width, job.height, cap=self.cap, multiple=SIZE_MULTIPLE_PX)
