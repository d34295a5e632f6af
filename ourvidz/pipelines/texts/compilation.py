"""Compiles the parts of a language model that have no KV cache, with torch.compile.

Its attention stays as it is: every layer writes to a place of its own in the cache, so each would be a graph
of its own. Feed-forward layers and norms share one graph for each kind of shape, and are most of the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ourvidz import log
from ourvidz.jobs.job import ChatJob, Message
from ourvidz.pipelines.texts.decoding import QwenBatchDecoder
from ourvidz.pipelines.texts.qwen_model import QwenModel

KINDS = frozenset({"Qwen2MLP", "Qwen2RMSNorm"})
FIRST_TOKENS = 2

_log = log.get(__name__)


def compile_model(model: QwenModel) -> None:
    """Compile a loaded model, and decode texts alone and together, so that no job waits for the compiler.
    Raises nothing: a model that cannot be compiled, for example for lack of a C compiler, runs as it is."""
    for module in _modules(model):
        module.forward = torch.compile(module.forward, dynamic=True)
    try:
        _decode(model, texts=1)
        _decode(model, texts=2)
    except Exception:  # noqa: BLE001  a worker starts also if compiling fails
        _log.exception("compiling_failed")
        for module in _modules(model):
            del module.forward


def is_compiled(model: QwenModel) -> bool:
    """Whether a model runs compiled."""
    return any("forward" in vars(module) for module in _modules(model))


def _modules(model: QwenModel) -> Iterator[Any]:
    for component in model.components():
        if isinstance(component, torch.nn.Module):
            yield from (module for module in component.modules() if type(module).__name__ in KINDS)


def _decode(model: QwenModel, *, texts: int) -> None:
    decoder = QwenBatchDecoder(model)
    for number in range(texts):
        decoder.add(str(number), _job(number))
    for _ in range(FIRST_TOKENS):
        decoder.step()


def _job(number: int) -> ChatJob:
    return ChatJob(
        id="first-pass",
        type="chat_conversation",
        user_id="first-pass",
        expected_time=1,
        messages=(Message(role="user", content="Name a colour" + " of the sea" * number),),
        max_tokens=FIRST_TOKENS + 1,
        seed=0,
    )
