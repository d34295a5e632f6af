"""Compiled language models: the same texts, and nothing is compiled within a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from tests.factories import chat_job
from tests.pipelines.texts.test_qwen import PROMPTS, decode_together

pytestmark = pytest.mark.model

JOBS = {
    f"t{number}": chat_job(prompt, max_tokens=4 + 20 * number) for number, prompt in enumerate(PROMPTS[:5])
}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts the graphs that are compiled; they run as they are."""
    counted: list[int] = []

    def count(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        counted.append(1)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    yield counted
    torch._dynamo.reset()


def test_texts_of_any_length_and_number_are_compiled_when_the_model_is_loaded(graphs: list[int]) -> None:
    """A job that waited for the compiler would miss its deadline; its texts are those of the plain model."""
    checkpoint = find_qwen(None, "instruct")
    plain, compiled = (
        QwenPipeline(checkpoint, "instruct"),
        QwenPipeline(checkpoint, "instruct", compiled=True),
    )
    compiled.load()
    loaded = len(graphs)
    assert loaded > 0
    assert compiled.info()["compiled"]
    assert decode_together(compiled, JOBS).texts == decode_together(plain, JOBS).texts
    compiled.sleep()
    compiled.load()
    for key, job in JOBS.items():
        assert decode_together(compiled, {key: job}).texts == decode_together(plain, {key: job}).texts
    assert len(graphs) == loaded
    assert not plain.info()["compiled"]


def test_a_model_that_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without a C compiler, for example; `/model/info` says so."""

    def fail(*_: object) -> Callable[..., object]:
        raise RuntimeError("there is no compiler")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    pipeline = QwenPipeline(find_qwen(None, "base"), "base", compiled=True)
    pipeline.load()
    assert not pipeline.info()["compiled"]
    assert decode_together(pipeline, {"t": chat_job(max_tokens=4)}).last["t"].finish_reason is not None
    torch._dynamo.reset()
