"""Wan: text, and pictures to follow, to clips.

One job climbs the same stairs every time: check → encode → timesteps → latents → denoise → decode.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from ourvidz import log
from ourvidz.errors import ModelLoadError, OutOfMemory
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines import devices, oom_fallbacks
from ourvidz.pipelines.base import (
    GeneratedVideo,
    OnPreview,
    OnStep,
    PreviewRenderer,
    ReferenceImages,
    SourceVideo,
)
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.loading import reading
from ourvidz.pipelines.oom_fallbacks import OomFallback
from ourvidz.pipelines.progress import ProgressReporter
from ourvidz.pipelines.wan import (
    calibration,
    conditions,
    loading,
    reference_frames,
    sizes,
    solvers,
    tiles,
    wording,
)
from ourvidz.pipelines.wan.caches import StepCache
from ourvidz.pipelines.wan.calibration import Magnitudes
from ourvidz.pipelines.wan.checkpoint import WanModel, read_model_info
from ourvidz.pipelines.wan.frames import Codec, pictures
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.parts import Parts
from ourvidz.pipelines.wan.placement import Placement
from ourvidz.pipelines.wan.previews import ClipColours, learn_clip_colours
from ourvidz.pipelines.wan.reference_frames import Plan, ReferenceGuidance
from ourvidz.pipelines.wan.report import report
from ourvidz.pipelines.wan.solvers import Schedule
from ourvidz.pipelines.wan.velocity import velocity
from ourvidz.pipelines.wan.wording import Words
from ourvidz.pipelines.wan.work import Work

_log = log.get(__name__)

NO_REFERENCES = ReferenceImages()
ON_DEVICE = Placement()
NO_OPTIONS = WanOptions()


class WanPipeline:
    """A warm Wan checkpoint. `cap` is the longest edge in pixels that it renders; None means any.

    `vace` is a second checkpoint, for jobs with references. The first may be any of Wan's models, and says in
    `model` which, once it is loaded.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        vace: Checkpoint | None = None,
        cap: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        placement: Placement = ON_DEVICE,
        options: WanOptions = NO_OPTIONS,
    ) -> None:
        self.checkpoint = checkpoint
        self.vace = vace
        self.model: WanModel = "t2v"
        self.cap = cap
        self.device = device or devices.best_device()
        self.options = options
        self.dtype = dtype or options.dtype_on(self.device)
        self.load_s: float | None = None
        self.parts = Parts(replace(placement, grouped=options.grouped), self.device, options)
        self._cache = StepCache()
        self._colours: ClipColours | None = None

    # -- warm and cold
    def load(self) -> None:
        """Bring the weights to the device. Safe to call twice. `ModelLoadError` says what is wrong; nothing
        stays loaded then: a worker that was told to have VACE would make other clips without it."""
        if self.parts.loaded:
            return
        self.options.check(self.device)
        started = time.perf_counter()
        try:
            with reading(self.checkpoint):
                self.model = read_model_info(self.checkpoint.path).model
                self.parts.hold(self._read())
                self._learn()
            if self.vace is not None:
                with reading(self.vace):
                    self.parts.hold_vace(loading.read_vace(self.vace, self.parts.pipe, self.dtype))
        except ModelLoadError:
            self.unload()
            raise
        self.load_s = round(time.perf_counter() - started, 3)
        _log.info("wan_loaded", **self.info())

    def unload(self) -> None:
        """Take the weights off the device. Safe to call twice."""
        self.parts.drop()
        self._colours, self._cache = None, StepCache()
        devices.free_memory()

    def info(self) -> dict[str, Any]:
        """What is loaded and where. `size_cap` is pixels, `memory_mib` is what the weights take.

        `native_size` is None: a Wan checkpoint does not say what it was trained on.
        """
        return {
            "name": self.checkpoint.name,
            "kind": self.checkpoint.kind,
            "loaded": self.parts.loaded,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "native_size": None,
            "size_cap": self.cap,
            "load_seconds": self.load_s,
            "memory_mib": self.parts.memory_mib(),
            "model": self.model,
            "vace": None if self.vace is None else self.vace.name,
            **self.options.info(),
        }

    # -- one job
    def generate(
        self,
        job: VideoJob,
        *,
        references: ReferenceImages | None = None,
        source: SourceVideo | None = None,
        on_step: OnStep,
        on_preview: OnPreview | None = None,
    ) -> GeneratedVideo:
        """Make the clip of one job, exactly as many frames as it asks for. Only VACE reads a `source`.

        `OutOfMemory` when all rungs of the ladder are climbed, `InvalidParameters`, or whatever `on_step`
        raises; the pipeline stays usable.
        """
        given = references or NO_REFERENCES
        self.check(job, given)
        self.load()
        started = time.perf_counter()
        plan = self._plan(job, source)
        work = Work(self._as_rendered(job), plan, given, ProgressReporter(on_step, on_preview), source)
        for rung in oom_fallbacks.rungs(1):
            if self._fits(work, rung):
                shrunk = self._size(job) != (job.width, job.height)
                return report(work, rung, seconds=time.perf_counter() - started, size_capped=shrunk)
            _log.warning("out_of_memory", job_id=job.id, rung=rung.name)
            # Only here, after the except block: its traceback held the tensors that are to be freed.
            devices.free_memory()
        raise OutOfMemory(f"Not enough memory for {job.frames} frames of {job.width}x{job.height} px.")

    def _fits(self, work: Work, rung: OomFallback) -> bool:
        """Whether the job could be finished with the memory there is; it is then."""
        try:
            with tiles.tiled(self.parts.pipe.vae, rung.tiled or self.options.tiled, self._size(work.job)):
                self._climb(work)
        except (RuntimeError, MemoryError) as error:
            if error is work.hearing.stopped_by or not devices.is_out_of_memory(error):
                raise
            return False
        return True

    @torch.no_grad()
    def _climb(self, work: Work) -> None:
        """The stairs after the check, from words to as many pictures as were asked for."""
        job = work.job
        if work.latents is None:
            words = self.encode(job)
            schedule = self.timesteps(job, work.plan)
            steering = self.latents(job, work.plan, work.references, work.source)
            work.latents = self.denoise(job, words, schedule, steering, hearing=work.hearing)
        work.frames = pictures(reference_frames.delivered(job, work.plan, self.decode(work.latents)))

    def check(self, job: VideoJob, references: ReferenceImages) -> None:
        """Refuse what this pipeline cannot render."""
        sizes.need_multiples(job)
        reference_frames.need_all(job, references)

    def encode(self, job: VideoJob) -> Words:
        """The prompt and, where guidance needs it, the negative prompt: the empty text if there is none."""
        texts = [job.prompt, job.negative_prompt or ""] if job.guidance_scale > 1 else [job.prompt]
        with self.parts.at_work("text_encoder") as where:
            pipe = self.parts.pipe
            said = [wording.encode(pipe, text, where, self.dtype).to(self.device) for text in texts]
        return Words(said[0], said[1] if len(said) > 1 else None)

    def timesteps(self, job: VideoJob, plan: Plan) -> Schedule:
        """The job's solver on its noise levels. SDEdit takes fewer steps than were asked for."""
        levels = solvers.noise_levels(plan.steps, shift=job.shift, start=plan.start)
        config = self.parts.pipe.scheduler.config
        return Schedule(solvers.solver(job.solver, config, levels, self.device), levels)

    def latents(
        self, job: VideoJob, plan: Plan, references: ReferenceImages, source: SourceVideo | None = None
    ) -> ReferenceGuidance:
        """The noise and what is known of the clip, both (1, channels, latent frames, height / 8, width / 8).

        The noise is drawn on the CPU in single precision, so that a seed means the same clip on every device.
        """
        with self.parts.at_work("vae"):
            codec = Codec(self.parts.pipe.vae)
            shape = codec.shape(job.frames, *self._size(job))
            known = reference_frames.known_latents(job, plan, references, codec, shape)
            seen = source or reference_frames.source(job, references)
            model = self.parts.transformer(plan)
            condition = conditions.condition(
                plan.model, model, seen, codec, shape, look=self.parts.image_tokens
            )
        generator = torch.Generator().manual_seed(job.seed)
        noise = torch.randn(condition.grown(shape), generator=generator, dtype=torch.float32).to(self.device)
        return ReferenceGuidance(plan, known, noise, condition)

    def denoise(
        self,
        job: VideoJob,
        words: Words,
        schedule: Schedule,
        steering: ReferenceGuidance,
        *,
        hearing: ProgressReporter,
    ) -> torch.Tensor:
        """From noise to the latents of the clip."""
        latents, model = steering.begin(schedule.levels[0]), self.parts.transformer(steering.plan)
        hearing.begin(schedule.steps)
        with ExitStack() as during:
            during.enter_context(self.parts.at_work("transformer", steering.plan))
            during.enter_context(self._cache.on(model, schedule.levels, guided=words.negative is not None))
            for step, timestep in enumerate(schedule.solver.timesteps):
                self._cache.at(float(timestep))
                given = steering.inputs(latents, step=step, dtype=self.dtype)
                with self.options.attending():
                    said = velocity(
                        model, given, timestep, words, job.guidance_scale, joined=self._cache.joined
                    )
                toward = steering.velocity(said, step=step)
                seen = self._look(latents, toward, schedule.levels[step])
                latents = schedule.solver.step(toward, timestep, latents, return_dict=False)[0]
                latents = steering.after(latents, step=step, level=schedule.levels[step + 1])
                hearing.step(step + 1, seen)
        return latents[:, :, steering.condition.ahead :]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """From latents to all frames that were generated: (frames, 3, height, width), -1 to 1."""
        with self.parts.at_work("vae"):
            return Codec(self.parts.pipe.vae).decode(latents)

    # -- what the stairs stand on
    def _read(self) -> Any:
        """The pipeline from disk."""
        return loading.read(self.checkpoint, self.model, self.dtype)

    def _plan(self, job: VideoJob, source: SourceVideo | None = None) -> Plan:
        beside = self.vace is not None and job.reference_mode != "none"
        return reference_frames.plan(job, "vace" if beside else self.model, sourced=source is not None)

    def _learn(self) -> None:
        """What has to be known of this checkpoint before its first job."""
        chosen = self.options
        if chosen.previews:
            with self.parts.at_work("vae"):
                self._colours = learn_clip_colours(Codec(self.parts.pipe.vae))
        if self.model != "t2v":
            return
        magnitudes = None
        if chosen.cache == "mag":
            name = calibration.fingerprint(self.parts.pipe.transformer)
            magnitudes = calibration.kept(chosen.calibrations, name, self._measured)
        self._cache = StepCache(chosen.cache, threshold=chosen.threshold, magnitudes=magnitudes)

    @torch.no_grad()
    def _measured(self) -> Magnitudes:
        """How much the blocks change their input on the way of a plain clip."""
        job = calibration.SAMPLE
        plan = reference_frames.plan(job)
        schedule = self.timesteps(job, plan)
        words, steering = self.encode(job), self.latents(job, plan, NO_REFERENCES)
        with calibration.watching(self.parts.pipe.transformer) as logs:
            self.denoise(job, words, schedule, steering, hearing=ProgressReporter(lambda *_: None, None))
        return Magnitudes(tuple(schedule.levels[:-1]), tuple(logs))

    def _look(
        self, latents: torch.Tensor, velocity: torch.Tensor, level: float
    ) -> Callable[[], PreviewRenderer] | None:
        """Copies what the clip looks like now; None where colours are not known."""
        return None if self._colours is None else self._colours.take(latents, velocity, level)

    def _as_rendered(self, job: VideoJob) -> VideoJob:
        """Checkpoints that were distilled to few steps have their guidance inside."""
        return job.model_copy(update={"guidance_scale": 1.0}) if self.options.few_steps else job

    def _size(self, job: VideoJob) -> tuple[int, int]:
        return sizes.rendered(job, self.cap)
