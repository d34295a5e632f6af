"""The Qwen pipeline: chat and text completions on a local checkpoint."""

from __future__ import annotations

import time
from typing import Any

import torch

from ourvidz import log
from ourvidz.errors import ModelLoadError
from ourvidz.pipelines import devices, sleeping
from ourvidz.pipelines.base import BatchDecoder
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.texts import compilation, qwen_model
from ourvidz.pipelines.texts.checkpoint import QwenVariant
from ourvidz.pipelines.texts.decoding import QwenBatchDecoder
from ourvidz.pipelines.texts.qwen_model import QwenModel

ENGINE = "pure"
"""`inference_engine` of a model that runs in this process."""

_log = log.get(__name__)


class QwenPipeline:
    """Runs one Qwen checkpoint; implements `TextPipeline`. The variant `instruct` uses the tokenizer's chat
    template, `base` continues plain text. `compiled` compiles the model when it is loaded."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        variant: QwenVariant,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.variant = variant
        self.compiled = compiled
        self.device = device or devices.best_device()
        # Not float16: Qwen2's activations overflow in it.
        self.dtype = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        self.load_s: float | None = None
        self._model: QwenModel | None = None
        self._asleep = False

    @property
    def loaded(self) -> bool:
        """Whether the weights are on the device."""
        return self._model is not None and not self._asleep

    def load(self) -> None:
        """Load the weights onto the device, or move them back from the host's memory. Idempotent. Raises
        `ModelLoadError`."""
        if self._model is not None:
            if self._asleep:
                sleeping.move_to_device(self._model.components(), self.device)
                self._asleep = False
            return
        started = time.perf_counter()
        plain = self.variant == "base"
        self._model = qwen_model.load_model(self.checkpoint, self.device, self.dtype, plain=plain)
        if self.compiled:
            compilation.compile_model(self._model)
        self.load_s = round(time.perf_counter() - started, 3)
        _log.info("qwen_loaded", **self.info())

    def sleep(self) -> None:
        """Move the weights to the memory of the host, from where `load` brings them back. Idempotent."""
        if self._model is not None:
            self._asleep = True
            sleeping.move_to_host(self._model.components())

    def unload(self) -> None:
        """Free the weights. Idempotent. A decoder that is still in use keeps them until it is dropped."""
        self._model, self._asleep = None, False
        devices.free_memory()

    def info(self) -> dict[str, Any]:
        """The checkpoint and where it is loaded. `context_length` is tokens, `memory_mib` is the weights."""
        model = self._model
        return {
            "name": self.checkpoint.name,
            "kind": self.checkpoint.kind,
            "variant": self.variant,
            "inference_engine": ENGINE,
            "loaded": self.loaded,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "compiled": model is not None and compilation.is_compiled(model),
            "context_length": None if model is None else model.context_length,
            "load_seconds": self.load_s,
            "memory_mib": 0 if model is None else model.memory_mib,
        }

    def new_decoder(self) -> BatchDecoder:
        """A decoder with no texts in it. Loads the checkpoint if necessary."""
        self.load()
        if self._model is None:
            raise ModelLoadError(f"{self.checkpoint.path} is not loaded.")
        return QwenBatchDecoder(self._model)
