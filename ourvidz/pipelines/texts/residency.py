"""Which language models are resident in memory: one at a time, unless several fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ourvidz import log
from ourvidz.errors import ModelLoadError, WorkerUnavailable
from ourvidz.pipelines.base import TextPipeline

ResidencyPolicy = Literal["auto", "always", "never"]
"""Whether several models may be resident at once; `auto` decides by the free memory."""

RESERVE_MIB = 2048
"""Memory that must stay free for the KV caches when a further model is loaded."""

STARTUP_WAIT_S = 300.0
"""How long a starting worker waits for remote servers, which may still be loading their own models."""
RETRY_DELAY_S = 2.0

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class TextModel:
    """A text pipeline and the memory that its weights need (MiB); 0 for a remote model."""

    pipeline: TextPipeline
    needs_mib: int


class ResidentTextModels:
    """Text models by name, loaded on demand and unloaded when another one needs the memory.

    `free_mib` returns the free memory of the GPU in MiB, or None without a GPU: then every model fits.
    """

    def __init__(
        self,
        models: Mapping[str, TextModel],
        *,
        policy: ResidencyPolicy,
        free_mib: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._models = dict(models)
        self._policy = policy
        self._free_mib = free_mib
        self._clock = clock
        self._sleep = sleep

    def get(self, name: str) -> TextPipeline:
        """The pipeline of the model `name`, loaded. Unloads the other local models first if it does not fit
        beside them.

        Raises `ModelLoadError` if the name is unknown or loading fails, `WorkerUnavailable` if a remote
        server does not answer.
        """
        model = self._models.get(name)
        if model is None:
            raise ModelLoadError(f"This worker has no language model {name!r}.")
        if not _is_loaded(model):
            if not self._fits(model):
                self._unload([other for other in self._models.values() if other.needs_mib])
            model.pipeline.load()
        return model.pipeline

    def warm(self) -> None:
        """Load the first model, and every other one that fits beside it. Waits up to `STARTUP_WAIT_S` for
        remote servers, then raises `WorkerUnavailable`."""
        deadline = self._clock() + STARTUP_WAIT_S
        for name, model in self._models.items():
            if not self._any_loaded() or self._fits(model):
                self._load_with_retries(name, deadline)

    def _load_with_retries(self, name: str, deadline: float) -> None:
        """Load a model; retry until `deadline` while its server is unavailable."""
        while True:
            try:
                self.get(name)
                return
            except WorkerUnavailable as error:
                if self._clock() >= deadline:
                    raise
                _log.warning("text_server_awaited", model=name, reason=error.message)
                self._sleep(RETRY_DELAY_S)

    def reload(self) -> None:
        """Unload all models and load them again as `warm` does."""
        self._unload(self._models.values())
        self.warm()

    def info(self) -> dict[str, Any]:
        """`TextPipeline.info()` of each model by name."""
        return {name: model.pipeline.info() for name, model in self._models.items()}

    def _any_loaded(self) -> bool:
        return any(_is_loaded(model) for model in self._models.values())

    def _fits(self, model: TextModel) -> bool:
        """Whether the policy and the free memory of the GPU allow the model beside the loaded ones."""
        if not model.needs_mib:
            return True
        if self._policy != "auto":
            return self._policy == "always"
        free = self._free_mib()
        return free is None or free >= model.needs_mib + RESERVE_MIB

    def _unload(self, models: Iterable[TextModel]) -> None:
        for model in models:
            if _is_loaded(model):
                _log.info("text_model_unloaded", model=model.pipeline.info()["name"])
                model.pipeline.unload()


def _is_loaded(model: TextModel) -> bool:
    return bool(model.pipeline.info()["loaded"])
