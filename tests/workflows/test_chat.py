from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import (
    Cancelled,
    InvalidParameters,
    JobTimeout,
    ModelLoadError,
    PolicyViolation,
)
from ourvidz.jobs.job import ChatJob, Message
from ourvidz.jobs.outcome import Outcome
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.net.fetch import Fetcher
from ourvidz.references.resolve import Limits, References
from ourvidz.safety.gate import Gate, Terms
from ourvidz.settings import load_settings
from ourvidz.storage.local import LocalStore
from ourvidz.wiring.models import WarmModels, build
from ourvidz.workflows.chat import converse
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Services

GATE = Gate(Terms(minor=frozenset({"quokka"}), sexual=frozenset({"marmalade"})))
"""Neutral stand-ins; only both together are refused."""
FOX = "a red circle on the left"


@dataclass
class Heard:
    """A run that writes down what is said, and stops where it is told to."""

    pieces: list[str] = field(default_factory=list)
    stop_at: int | None = None
    stop_with: Exception | None = None
    deaf: int = 0

    def step(self, done: int, total: int) -> None:
        if self.stop_at == done and self.stop_with is not None:
            raise self.stop_with

    def say(self, text: str, done: int, total: int) -> bool:
        if self.deaf:
            self.deaf -= 1
            return False
        self.pieces.append(text)
        if self.stop_at is not None and done >= self.stop_at and self.stop_with is not None:
            raise self.stop_with
        return True


@dataclass
class Turn:
    """One text job and what became of it."""

    job: ChatJob
    run: Any = field(default_factory=Heard)
    outcome: Outcome | None = None
    error: Exception | None = None

    def end(self, outcome: Outcome) -> None:
        assert self.outcome is None
        assert self.error is None
        self.outcome = outcome

    def fail(self, error: Exception) -> None:
        assert self.outcome is None
        assert self.error is None
        self.error = error

    @property
    def text(self) -> str:
        assert self.outcome is not None, self.error
        return str(self.outcome.assets[0].metadata["text"])


@dataclass
class Waiting:
    """Jobs that join when so many looks have been taken."""

    turns: list[Turn] = field(default_factory=list)
    after: int = 0
    seen: list[int] = field(default_factory=list)

    def joining(self, first: ChatJob, *, present: int) -> list[Turn]:
        self.seen.append(present)
        if len(self.seen) <= self.after or not self.turns:
            return []
        joined, self.turns = self.turns, []
        return joined


@pytest.fixture(scope="module")
def warm() -> WarmModels:
    """The tiny profile's language models."""
    models = build(load_settings(_env_file=None), "chat")
    models.warm()
    return models


@pytest.fixture
def use(warm: WarmModels, tmp_path: Path) -> Services:
    """Real models, a gate with stand-in terms."""
    store = LocalStore(tmp_path / "assets")
    limits = Limits(max_bytes=1 << 20, max_pixels=1 << 20)
    references = References(Fetcher(EgressPolicy(), timeout_s=1.0, max_bytes=1 << 20).get, store.get, limits)
    return Services(models=warm, store=store, gate=GATE, references=references)


def job(name: str = "job-1", *said: str, **changed: Any) -> ChatJob:
    fields: dict[str, Any] = {
        "id": name,
        "type": "chat_conversation",
        "expected_time": 15,
        "messages": tuple(Message(role="user", content=text) for text in said or (FOX,)),
        "max_tokens": 24,
        "temperature": 0.0,
        "seed": 7,
    }
    return ChatJob(**(fields | changed))


def alone(asked: ChatJob, use: Services, run: Heard | None = None) -> Turn:
    turn = Turn(asked, run or Heard())
    converse(turn, Waiting(), use)
    return turn


def test_a_text_stands_in_its_asset_with_what_is_known_of_it(use: Services) -> None:
    """Nothing is stored for a text, so the callback has to carry it."""
    turn = alone(job(), use)
    assert turn.outcome is not None
    (asset,) = turn.outcome.assets
    assert (asset.type, asset.key, asset.metadata["format"]) == ("text", None, "text")
    told = turn.outcome.metadata
    assert 0 < told["tokens_generated"] <= 24
    assert told["prompt_tokens"] > 0
    assert told["finish_reason"] in {"stop", "length"}
    assert (told["inference_engine"], told["active_model_type"]) == ("pure", "instruct")
    assert turn.outcome.enhanced_prompt is None
    assert turn.text


def test_what_is_said_along_the_way_is_the_text(use: Services) -> None:
    """Who reads along and who waits must get the same answer."""
    turn = alone(job(), use)
    assert "".join(turn.run.pieces) == turn.text
    assert turn.run.pieces[0]


def test_what_nobody_heard_is_said_again(use: Services) -> None:
    """A ledger that was away for a moment must not cost a reader half a sentence."""
    turn = alone(job(), use, Heard(deaf=1))
    assert "".join(turn.run.pieces) == turn.text


@dataclass
class Clock:
    """A time that passes only where a test says so."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Ticking(Waiting):
    """Nobody joins, and every token takes its time."""

    clock: Clock = field(default_factory=Clock)
    token_s: float = 0.1

    def joining(self, first: ChatJob, *, present: int) -> list[Turn]:
        self.clock.now += self.token_s
        return super().joining(first, present=present)


class SlowGate(Gate):
    """Takes two seconds for everything it judges."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(Terms(minor=frozenset({"quokka"}), sexual=frozenset({"marmalade"})))
        self.clock = clock
        self.judged = 0

    def judge(self, job: Any, made: str = "") -> None:
        self.clock.now += 2.0
        self.judged += 1


def test_a_cancel_is_heard_while_judging_takes_long(use: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long conversation is judged seldom, and its caller may still hang up at any time."""
    clock = Clock()
    monkeypatch.setattr("ourvidz.workflows.chat.time", clock)
    gate = SlowGate(clock)
    never_ending = {"temperature": 2.0, "top_p": 1.0, "frequency_penalty": -2.0, "presence_penalty": -2.0}
    turn = Turn(job("a", ", ".join([FOX] * 4), max_tokens=100, seed=1, **never_ending))
    converse(turn, Ticking(clock=clock), replace(use, gate=gate))
    assert turn.outcome is not None
    tokens = turn.outcome.metadata["tokens_generated"]
    assert tokens > 30
    assert len(turn.run.pieces) >= tokens - gate.judged
    assert gate.judged <= 4
    assert "".join(turn.run.pieces) == turn.text


@dataclass
class Far(Heard):
    """A run whose ledger is away: every try takes a second."""

    clock: Clock = field(default_factory=Clock)
    tried: int = 0

    def say(self, text: str, done: int, total: int) -> bool:
        self.clock.now += 1.0
        self.tried += 1
        return False


def test_a_ledger_that_is_away_does_not_slow_a_text_down(
    use: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor its company: the first word is not tried again with every token."""
    clock = Clock()
    monkeypatch.setattr("ourvidz.workflows.chat.time", clock)
    turn = Turn(job(), Far(clock=clock))
    converse(turn, Ticking(clock=clock), use)
    assert turn.text
    assert turn.run.tried <= 4


def test_a_text_whose_last_token_comes_too_late_is_whole(use: Services) -> None:
    """Nothing of it is missing, so nothing timed out."""
    whole = alone(job(), use)
    assert whole.outcome is not None
    at = whole.outcome.metadata["tokens_generated"]
    late = alone(job(), use, Heard(stop_at=at, stop_with=JobTimeout("late")))
    assert late.outcome is not None
    assert late.text == whole.text
    assert late.outcome.metadata["finish_reason"] == whole.outcome.metadata["finish_reason"]


def test_companions_join_while_the_first_text_grows_and_each_gets_its_own_answer(use: Services) -> None:
    """In one batch or alone: greedy decoding answers the same."""
    asked = [
        job(f"job-{n}", f"a {colour} star on a hill") for n, colour in enumerate(("red", "blue", "green"))
    ]
    solo = [alone(each, use).text for each in asked]
    first, *others = [Turn(each) for each in asked]
    company = Waiting(others, after=3)
    converse(first, company, use)
    assert [turn.text for turn in (first, *others)] == solo
    assert max(company.seen) == 3


def test_the_end_of_one_text_is_not_the_end_of_the_others(use: Services) -> None:
    """A cancelled companion leaves; the rest goes on."""
    cancelled = Turn(job("b"), Heard(stop_at=1, stop_with=Cancelled("enough")))
    lost = Turn(job("c"), Heard(stop_at=1, stop_with=FenceLost("c")))
    first = Turn(job("a"))
    converse(first, Waiting([cancelled, lost]), use)
    assert first.text == alone(job("a"), use).text
    assert isinstance(cancelled.error, Cancelled)
    assert isinstance(lost.error, FenceLost)


def test_time_that_is_up_returns_the_text_so_far(use: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an answer is worth more than an error."""
    clock = Clock()
    monkeypatch.setattr("ourvidz.workflows.chat.time", clock)
    turn = Turn(job(max_tokens=64), Heard(stop_at=2, stop_with=JobTimeout("late")))
    converse(turn, Ticking(clock=clock), use)
    assert turn.outcome is not None
    assert turn.outcome.metadata["finish_reason"] == "timeout"
    assert alone(job(max_tokens=64), use).text.startswith(turn.text)


def test_a_conversation_that_does_not_fit_is_refused_and_named(use: Services) -> None:
    """Never a silent cut."""
    turn = alone(job("a", "a fox " * 40_000), use)
    assert isinstance(turn.error, InvalidParameters)
    assert turn.error.field == "messages"


def test_an_enhancement_is_the_prompt_that_it_improves(use: Services) -> None:
    """`chat_enhance` fills the callback's enhancedPrompt and says who did it."""
    turn = alone(job(type="chat_enhance", max_tokens=40), use)
    assert turn.outcome is not None
    assert turn.outcome.enhanced_prompt == turn.text
    assert turn.outcome.metadata["enhancement_strategy"] == "qwen"
    assert turn.outcome.metadata["enhancement_source"] == "qwen_instruct"
    assert turn.outcome.metadata["enhancement_model"] == turn.outcome.metadata["model_name"]


@pytest.mark.parametrize("why", [JobTimeout("late"), RuntimeError("a crash")])
def test_an_enhancement_that_fails_is_the_original_prompt(use: Services, why: Exception) -> None:
    """The caller wants a picture: it can be made from what was sent."""
    turn = alone(job(type="chat_enhance"), use, Heard(stop_at=1, stop_with=why))
    assert turn.outcome is not None
    assert turn.outcome.enhanced_prompt == turn.text == FOX
    assert turn.outcome.metadata["enhancement_strategy"] == "fallback"
    assert turn.outcome.metadata["enhancement_reason"]


def test_a_cancelled_enhancement_is_cancelled(use: Services) -> None:
    """Nobody wants its prompt any more."""
    turn = alone(job(type="chat_enhance"), use, Heard(stop_at=1, stop_with=Cancelled("enough")))
    assert isinstance(turn.error, Cancelled)


def test_what_the_gate_refuses_is_never_said(use: Services) -> None:
    """Generated text passes the gate before anybody reads it."""
    answer = alone(job(), use).text
    word = next(word for word in re.findall(r"[a-z]{4,}", answer) if word not in FOX)
    gate = Gate(Terms(minor=frozenset({"circle"}), sexual=frozenset({word})))
    turn = alone(job(), replace(use, gate=gate))
    assert isinstance(turn.error, PolicyViolation)
    assert word not in "".join(turn.run.pieces)


class Judge:
    """A moderation that refuses one word, and notes what it was asked."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.asked: list[str] = []

    def judge(self, text: str) -> None:
        self.asked.append(text)
        if self.word in text:
            raise PolicyViolation("This request cannot be processed.")


def test_moderation_hears_what_comes_in_and_what_goes_out(use: Services) -> None:
    """Once each; a text it has not passed is not shown, not even its beginning."""
    judge = Judge("nothing of the kind")
    turn = alone(job(sfw_mode=True), replace(use, moderation=judge))
    assert judge.asked == [FOX, turn.text]
    assert [piece for piece in turn.run.pieces if piece] == [turn.text]


@pytest.mark.parametrize("word", [FOX, " "])
def test_moderation_refuses_questions_and_answers(use: Services, word: str) -> None:
    """Neither is processed any further."""
    turn = alone(job(sfw_mode=True), replace(use, moderation=Judge(word)))
    assert isinstance(turn.error, PolicyViolation)
    assert "".join(turn.run.pieces) == ""


def test_moderation_is_asked_for_by_the_caller(use: Services) -> None:
    """Without `sfw_mode` nobody pays for it."""
    judge = Judge("")
    assert alone(job(), replace(use, moderation=judge)).text
    assert judge.asked == []


def test_a_model_that_is_missing_concerns_everybody(use: Services, tmp_path: Path) -> None:
    """The workflow has nothing to answer with: who called it decides."""
    settings: Callable[..., Any] = load_settings
    missing = build(settings(_env_file=None, OURVIDZ_QWEN_MODEL=tmp_path / "nowhere"), "sdxl")
    with pytest.raises(ModelLoadError):
        converse(Turn(job()), Waiting(), replace(use, models=missing))
