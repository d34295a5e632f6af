"""Builds the pipelines of a worker from its settings. Imports torch: only a worker's child imports this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import ImagePipeline, TextPipeline, VideoPipeline
from ourvidz.pipelines.devices import free_memory, trim_heap
from ourvidz.pipelines.loading import checkpoint_mib
from ourvidz.settings import Settings
from ourvidz.vram import gpu
from ourvidz.vram.device import Device, open_device
from ourvidz.wiring import control
from ourvidz.wiring.first_passes import FirstJob, first_jobs, run_first_jobs
from ourvidz.wiring.model_parts import Pipelines, Staged, Whole
from ourvidz.wiring.shared_device import SharedDevice
from ourvidz.workflows.services import UnsharedDevice

if TYPE_CHECKING:
    from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
    from ourvidz.pipelines.texts.residency import ResidentTextModels
    from ourvidz.pipelines.wan.pipeline import WanPipeline

_BUILDERS = {"sdxl": "ourvidz.wiring.sdxl", "wan": "ourvidz.wiring.wan", "chat": "ourvidz.wiring.texts"}
"""Family → the module that builds its pipelines; a worker imports only its own."""


class WarmModels:
    """The pipelines of one family; implements `Models`."""

    def __init__(
        self,
        sdxl: SDXLPipeline | None = None,
        *,
        wan: WanPipeline | None = None,
        texts: ResidentTextModels | None = None,
        device_share: SharedDevice | None = None,
        first_jobs: Sequence[FirstJob] = (),
    ) -> None:
        self._sdxl = sdxl
        self._wan = wan
        self._texts = texts
        self.device_share = device_share
        """The device, where this worker shares one; then jobs hold their model on it."""
        self._first_jobs = first_jobs

    def warm(self) -> None:
        """Load all models of this worker, and compile what the settings say; on a shared device those for
        which enough memory is free. Raises `ModelLoadError`."""
        if self.device_share is not None:
            self.device_share.warm()
        else:
            for pipeline in self._pipelines().values():
                pipeline.load()
            if self._texts is not None:
                self._texts.warm()
        self._compile()
        trim_heap()

    def images(self) -> ImagePipeline:
        """The loaded pipeline for SDXL jobs. Raises `ModelLoadError`, also on a worker of another family."""
        if self._sdxl is None:
            raise ModelLoadError("This worker has no pipeline for pictures.")
        self._sdxl.load()
        return self._sdxl

    def videos(self) -> VideoPipeline:
        """The loaded pipeline for Wan jobs. Raises `ModelLoadError`, also on a worker of another family."""
        if self._wan is None:
            raise ModelLoadError("This worker has no pipeline for videos.")
        self._wan.load()
        return self._wan

    def texts(self, model: str) -> TextPipeline:
        """The loaded language model of that name. Raises `ModelLoadError`, also on a worker of another
        family."""
        if self._texts is None:
            raise ModelLoadError("This worker has no language models.")
        return self._texts.get(model)

    def reload(self) -> None:
        """Unload all models and load them again."""
        if self.device_share is not None:
            self.device_share.unload()
            self.device_share.warm()
        else:
            for pipeline in self._pipelines().values():
                pipeline.unload()
                pipeline.load()
            if self._texts is not None:
                self._texts.reload()
        self._compile()

    def flush(self) -> None:
        """Drop encoded prompts and references, and free device memory that nothing references any more."""
        for pipeline in (self._sdxl, self._wan):
            if pipeline is not None:
                pipeline.cache.clear()
        free_memory()

    def info(self) -> dict[str, Any]:
        """`info()` of each pipeline, by family or by language model."""
        info = {family: pipeline.info() for family, pipeline in self._pipelines().items()}
        return info if self._texts is None else info | self._texts.info()

    def memory(self) -> dict[str, Any]:
        """The memory of this worker's GPU (MiB and GiB); zeros without a GPU."""
        return gpu.memory() if self.device_share is None else gpu.report(**self.device_share.memory())

    def take_gpu_seconds(self) -> dict[str, float]:
        """The GPU-seconds by stage since the last call, for one job."""
        return {
            stage: s for pipeline in self._pipelines().values() for stage, s in pipeline.clock.take().items()
        }

    def give_back_gpu_seconds(self, seconds: Mapping[str, float]) -> None:
        """Count seconds that were taken for the next job that takes."""
        for pipeline in self._pipelines().values():
            pipeline.clock.give_back(seconds)

    def _compile(self) -> None:
        """Run one step of every kind of job, if the models are compiled on their first use."""
        if not self._first_jobs:
            return
        device = self.device_share or UnsharedDevice()
        run_first_jobs(self._first_jobs, device, self._generate)
        # What the first passes took is no job's.
        self.take_gpu_seconds()

    def _generate(self, job: FirstJob) -> None:
        if isinstance(job, ImageJob):
            self.images().generate(job, on_step=_no_progress)
        else:
            self.videos().generate(job, on_step=_no_progress)

    def _pipelines(self) -> dict[str, SDXLPipeline | WanPipeline]:
        pipelines = {"sdxl": self._sdxl, "wan": self._wan}
        return {family: pipeline for family, pipeline in pipelines.items() if pipeline is not None}


def _no_progress(done: int, total: int) -> None:
    """First passes report no progress."""


def preload(family: str) -> None:
    """Import all that building the pipelines of a family takes."""
    if family in _BUILDERS:
        import_module(_BUILDERS[family])


def build(settings: Settings, family: str) -> WarmModels:
    """The pipelines of one family, not loaded yet. Raises `ModelLoadError` naming missing files or
    settings, or the lack of a GPU where the settings require one."""
    device = open_device(settings, family)
    parts: Pipelines
    if family == "sdxl":
        from ourvidz.wiring import sdxl

        images = sdxl.build(settings)
        parts = {"sdxl": Whole(images, checkpoint_mib(images.checkpoint, images.dtype))}
        share = _share(settings, family, device, parts)
        return WarmModels(images, device_share=share, first_jobs=first_jobs(settings, "sdxl"))
    if family == "wan":
        from ourvidz.wiring import wan

        videos = wan.build(settings)
        parts = {"wan": Staged(videos, videos.part_sizes())}
        share = _share(settings, family, device, parts)
        return WarmModels(wan=videos, device_share=share, first_jobs=first_jobs(settings, "wan"))
    if family == "chat":
        from ourvidz.wiring import texts

        models = texts.build(settings)
        # On a shared device the jobs' grants decide what is resident.
        resident = texts.residents(models, "always" if device is not None else settings.qwen_together)
        parts = texts.local_pipelines(models)
        return WarmModels(texts=resident, device_share=_share(settings, family, device, parts))
    raise ModelLoadError(f"There are no pipelines for {family!r}.")


def _no_gpu(settings: Settings) -> str:
    """Why a worker without a GPU does not load its models. torch does not report an old driver or an unknown
    UUID: it sees no GPU, and models would run on the CPU, a hundred times slower."""
    reason = "the production profile" if settings.gpu is None else f"OURVIDZ_GPU={settings.gpu}"
    return (
        f"torch sees no GPU, and {reason} needs one: check the driver, the CUDA build of torch"
        " and the index or UUID (nvidia-smi -L). OURVIDZ_ALLOW_CPU=true runs the models on the CPU."
    )


def _share(
    settings: Settings, family: str, device: Device | None, pipelines: Pipelines
) -> SharedDevice | None:
    if device is None:
        if pipelines and settings.requires_gpu:
            raise ModelLoadError(_no_gpu(settings))
        return None
    return SharedDevice(settings, family, control.current().ledger, device, pipelines)
