"""Which language models stay loaded, by what they need and what is free."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.errors import WorkerUnavailable
from ourvidz.pipelines.base import Decoding
from ourvidz.pipelines.checkpoints import find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.wiring.texts import ASK_AGAIN_S, AWAITED_S, SPARE_MIB, Text, Together, WarmTexts

NEEDS_MIB = 5000


def texts(*, free_mib: int | None, together: Together = "auto") -> WarmTexts:
    """The models that ship, said to be large."""
    return WarmTexts(
        {
            "qwen_instruct": Text(QwenPipeline(find_qwen(None, "instruct"), "instruct"), NEEDS_MIB),
            "qwen_base": Text(QwenPipeline(find_qwen(None, "base"), "base"), NEEDS_MIB),
        },
        together=together,
        free_mib=lambda: free_mib,
    )


def loaded(models: WarmTexts) -> list[str]:
    return [name for name, info in models.info().items() if info["loaded"]]


@pytest.mark.parametrize(
    ("free_mib", "together", "expected"),
    [
        (None, "auto", ["qwen_instruct", "qwen_base"]),
        (NEEDS_MIB + SPARE_MIB, "auto", ["qwen_instruct", "qwen_base"]),
        (NEEDS_MIB + SPARE_MIB - 1, "auto", ["qwen_instruct"]),
        (0, "always", ["qwen_instruct", "qwen_base"]),
        (None, "never", ["qwen_instruct"]),
    ],
)
def test_a_second_model_comes_where_it_fits(
    free_mib: int | None, together: Together, expected: list[str]
) -> None:
    """The first is loaded whatever is free: a worker without a model is of no use."""
    models = texts(free_mib=free_mib, together=together)
    models.warm()
    assert loaded(models) == expected


def test_where_both_do_not_fit_the_one_that_is_asked_for_is_loaded() -> None:
    """And what is loaded stays for as long as nothing else is asked for."""
    models = texts(free_mib=0)
    base = models.open("qwen_base")
    assert loaded(models) == ["qwen_base"]
    assert models.open("qwen_base") is base
    models.open("qwen_instruct")
    assert loaded(models) == ["qwen_instruct"]


class Elsewhere:
    """What a server on another machine looks like to those who decide what stays loaded."""

    def __init__(self, away: int = 0) -> None:
        self.loads = 0
        self.there = False
        self.away = away

    def load(self) -> None:
        self.loads += 1
        if self.loads <= self.away:
            raise WorkerUnavailable("cannot be reached")
        self.there = True

    def unload(self) -> None:
        self.there = False

    def info(self) -> dict[str, Any]:
        return {"loaded": self.there, "name": "large"}

    def decoding(self) -> Decoding:
        raise AssertionError("nobody asks for a text here")


@pytest.mark.parametrize("together", ["auto", "never"])
def test_a_model_on_another_machine_takes_no_room(together: Together) -> None:
    """It comes and stays beside whatever is loaded here."""
    server = Elsewhere()
    models = WarmTexts(
        {
            "qwen_instruct": Text(QwenPipeline(find_qwen(None, "instruct"), "instruct"), NEEDS_MIB),
            "qwen_base": Text(server, needs_mib=0),
        },
        together=together,
        free_mib=lambda: 0,
    )
    models.warm()
    assert loaded(models) == ["qwen_instruct", "qwen_base"]
    models.open("qwen_base")
    assert server.loads == 1


def test_a_server_that_comes_up_later_is_waited_for() -> None:
    """It loads for minutes after a restart of everything: a worker that gave up would serve nobody."""
    slept: list[float] = []
    servers = {name: Text(Elsewhere(away=3), needs_mib=0) for name in ("qwen_instruct", "qwen_base")}
    models = WarmTexts(
        servers, together="auto", free_mib=lambda: None, clock=lambda: sum(slept), sleep=slept.append
    )
    models.warm()
    assert loaded(models) == ["qwen_instruct", "qwen_base"]
    assert slept == [ASK_AGAIN_S] * 6


def test_a_server_that_never_comes_is_given_up() -> None:
    """An operator then reads why the worker takes no jobs."""
    slept: list[float] = []
    never = {"qwen_instruct": Text(Elsewhere(away=10_000), needs_mib=0)}
    models = WarmTexts(
        never, together="auto", free_mib=lambda: None, clock=lambda: sum(slept), sleep=slept.append
    )
    with pytest.raises(WorkerUnavailable):
        models.warm()
    assert sum(slept) == pytest.approx(AWAITED_S, abs=ASK_AGAIN_S)
