"""Qwen: conversations and completions, many at once."""

from __future__ import annotations

import time
from typing import Any

import torch

from ourvidz import log
from ourvidz.errors import ModelLoadError
from ourvidz.pipelines import devices
from ourvidz.pipelines.base import BatchDecoder
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.texts import warm_qwen
from ourvidz.pipelines.texts.checkpoint import QwenVariant
from ourvidz.pipelines.texts.decoding import QwenBatchDecoder
from ourvidz.pipelines.texts.warm_qwen import WarmQwen

ENGINE = "pure"
"""What the contract calls a model that runs in this process."""

_log = log.get(__name__)


class QwenPipeline:
    """One Qwen checkpoint; implements `TextPipeline`.

    `instruct` speaks through its tokenizer's chat template, `base` goes on from the plain text.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        variant: QwenVariant,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.variant = variant
        self.device = device or devices.best_device()
        # Qwen2's activations overflow in float16.
        self.dtype = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        self.load_s: float | None = None
        self._warm: WarmQwen | None = None

    @property
    def loaded(self) -> bool:
        """Whether the weights are on the device."""
        return self._warm is not None

    def load(self) -> None:
        """Bring the weights to the device. Safe to call twice. `ModelLoadError` says what is wrong."""
        if self._warm is not None:
            return
        started = time.perf_counter()
        self._warm = warm_qwen.warm(self.checkpoint, self.device, self.dtype, plain=self.variant == "base")
        self.load_s = round(time.perf_counter() - started, 3)
        _log.info("qwen_loaded", **self.info())

    def unload(self) -> None:
        """Take the weights off the device. Safe to call twice. A batch that still runs keeps them until it
        is dropped."""
        self._warm = None
        devices.free_memory()

    def info(self) -> dict[str, Any]:
        """What is loaded and where. `context_length` is tokens, `memory_mib` is what the weights take."""
        warm = self._warm
        return {
            "name": self.checkpoint.name,
            "kind": self.checkpoint.kind,
            "variant": self.variant,
            "inference_engine": ENGINE,
            "loaded": warm is not None,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "context_length": None if warm is None else warm.context,
            "load_seconds": self.load_s,
            "memory_mib": 0 if warm is None else warm.memory_mib,
        }

    def new_decoder(self) -> BatchDecoder:
        """A new batch with no texts in it."""
        self.load()
        if self._warm is None:
            raise ModelLoadError(f"{self.checkpoint.path} is not loaded.")
        return QwenBatchDecoder(self._warm)
