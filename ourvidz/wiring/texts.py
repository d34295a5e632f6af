"""Which language models are loaded: one at a time, unless there is room for more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ourvidz import log
from ourvidz.errors import ModelLoadError, WorkerUnavailable
from ourvidz.pipelines.base import TextPipeline

Together = Literal["auto", "always", "never"]
"""Whether several may be loaded at once; `auto` looks at the free memory."""

SPARE_MIB = 2048
"""What is to be left for growing texts when another model comes beside the first."""

AWAITED_S = 300.0
"""How long a worker that starts waits for servers elsewhere, which may still be loading their own models."""
ASK_AGAIN_S = 2.0

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Text:
    """A pipeline, and what its weights take (MiB): 0 where they are on another machine."""

    pipeline: TextPipeline
    needs_mib: int


class WarmTexts:
    """Language models by name, loaded when they are asked for. `free_mib` tells the free memory of the GPU,
    None where there is none: then there is room."""

    def __init__(
        self,
        texts: Mapping[str, Text],
        *,
        together: Together,
        free_mib: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._texts = dict(texts)
        self._together = together
        self._free_mib = free_mib
        self._clock = clock
        self._sleep = sleep

    def open(self, model: str) -> TextPipeline:
        """The model of that name, loaded; the others are unloaded first where both do not fit.
        `ModelLoadError` where there is none, or it cannot be loaded; `WorkerUnavailable` for a server that
        does not answer."""
        chosen = self._texts.get(model)
        if chosen is None:
            raise ModelLoadError(f"This worker has no language model {model!r}.")
        if not _loaded(chosen):
            if not self._fits(chosen):
                self._unload([text for text in self._texts.values() if text.needs_mib])
            chosen.pipeline.load()
        return chosen.pipeline

    def warm(self) -> None:
        """Load the first, and the others that fit beside it. Servers that do not answer yet are awaited."""
        until = self._clock() + AWAITED_S
        for name, text in self._texts.items():
            if not self._any_loaded() or self._fits(text):
                self._await(name, until)

    def _await(self, name: str, until: float) -> None:
        while True:
            try:
                self.open(name)
                return
            except WorkerUnavailable as away:
                if self._clock() >= until:
                    raise
                _log.warning("text_server_awaited", model=name, reason=away.message)
                self._sleep(ASK_AGAIN_S)

    def reload(self) -> None:
        """Drop everything and load it again."""
        self._unload(self._texts.values())
        self.warm()

    def info(self) -> dict[str, Any]:
        """What each model tells of itself, by name."""
        return {name: text.pipeline.info() for name, text in self._texts.items()}

    def _any_loaded(self) -> bool:
        return any(_loaded(text) for text in self._texts.values())

    def _fits(self, text: Text) -> bool:
        if not text.needs_mib:
            return True
        if self._together != "auto":
            return self._together == "always"
        free = self._free_mib()
        return free is None or free >= text.needs_mib + SPARE_MIB

    def _unload(self, texts: Iterable[Text]) -> None:
        for text in texts:
            if _loaded(text):
                _log.info("text_model_unloaded", model=text.pipeline.info()["name"])
                text.pipeline.unload()


def _loaded(text: Text) -> bool:
    return bool(text.pipeline.info()["loaded"])
