"""The workflow of text jobs on the language models that ship."""

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
from ourvidz.jobs.job import ChatJob
from ourvidz.safety.gate import Gate, Terms
from ourvidz.settings import load_settings
from ourvidz.wiring.models import WarmModels, build
from ourvidz.workflows.chat import run_text_batch
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Services
from tests import factories
from tests.factories import QueuedItems, RecordingItem, RecordingRun

pytestmark = pytest.mark.model

PROMPT = "a red circle on the left"


@pytest.fixture(scope="module")
def models() -> WarmModels:
    """The tiny profile's language models."""
    models = build(load_settings(_env_file=None), "chat")
    models.warm()
    return models


@pytest.fixture
def services(models: WarmModels, tmp_path: Path) -> Services:
    """Real models, a gate with stand-in terms."""
    return factories.services(models, tmp_path)


def job(job_id: str = "job-1", text: str = PROMPT, **changes: Any) -> ChatJob:
    """A greedy text job of 24 tokens."""
    return factories.chat_job(text, job_id=job_id, **({"max_tokens": 24} | changes))


def alone(job: ChatJob, services: Services, run: RecordingRun | None = None) -> RecordingItem:
    """Run one job in a batch of its own."""
    item = RecordingItem(job, run or RecordingRun())
    run_text_batch(item, QueuedItems(), services)
    return item


def test_the_asset_carries_the_text_and_the_metadata_its_statistics(services: Services) -> None:
    """Texts are not stored as files, so the callback contains them."""
    item = alone(job(), services)
    assert item.outcome is not None
    (asset,) = item.outcome.assets
    assert (asset.type, asset.key, asset.metadata["format"]) == ("text", None, "text")
    metadata = item.outcome.metadata
    assert 0 < metadata["tokens_generated"] <= 24
    assert metadata["prompt_tokens"] > 0
    assert metadata["finish_reason"] in {"stop", "length"}
    assert (metadata["inference_engine"], metadata["active_model_type"]) == ("pure", "instruct")
    assert item.outcome.enhanced_prompt is None
    assert item.text


def test_the_streamed_deltas_are_the_text(services: Services) -> None:
    """Callers that stream and callers that wait get the same answer."""
    item = alone(job(), services)
    assert "".join(item.run.pieces) == item.text
    assert item.run.pieces[0]


def test_an_undelivered_delta_is_sent_again(services: Services) -> None:
    """No text is lost while the ledger is unreachable."""
    item = alone(job(), services, RecordingRun(unreachable=1))
    assert "".join(item.run.pieces) == item.text


@dataclass
class FakeTime:
    """Stands in for the `time` module; the test advances `now`."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The workflow's clock."""
    clock = FakeTime()
    for module in ("chat", "batch_texts"):
        monkeypatch.setattr(f"ourvidz.workflows.{module}.time", clock)
    return clock


@dataclass
class TimedItems(QueuedItems):
    """No item joins, and every token takes `token_s` seconds."""

    clock: FakeTime = field(default_factory=FakeTime)
    token_s: float = 0.1

    def next_items(self, first: ChatJob, *, batch_size: int) -> list[RecordingItem]:
        self.clock.now += self.token_s
        return super().next_items(first, batch_size=batch_size)


class SlowGate(Gate):
    """A gate whose checks take two seconds each."""

    def __init__(self, clock: FakeTime) -> None:
        super().__init__(factories.STAND_IN_TERMS)
        self.clock = clock
        self.checks = 0

    def check_job(self, job: Any, generated: str = "") -> None:
        self.clock.now += 2.0
        self.checks += 1


def test_a_cancel_is_seen_while_checks_take_long(services: Services, clock: FakeTime) -> None:
    """Cancellations are polled between the checks of long conversations as well."""
    gate = SlowGate(clock)
    never_ending = {"temperature": 2.0, "top_p": 1.0, "frequency_penalty": -2.0, "presence_penalty": -2.0}
    text = ", ".join([PROMPT] * 4)
    item = RecordingItem(job("a", text, max_tokens=100, seed=1, **never_ending))
    run_text_batch(item, TimedItems(clock=clock), replace(services, gate=gate))
    assert item.outcome is not None
    tokens = item.outcome.metadata["tokens_generated"]
    assert tokens > 30
    assert len(item.run.pieces) >= tokens - gate.checks
    assert gate.checks <= 4
    assert "".join(item.run.pieces) == item.text


@dataclass
class UnreachableRun(RecordingRun):
    """A run with an unreachable ledger: every flush takes a second and fails."""

    clock: FakeTime = field(default_factory=FakeTime)
    flushes: int = 0

    def stream_text(self, text: str, tokens: int, max_tokens: int) -> bool:
        self.clock.now += 1.0
        self.flushes += 1
        return False


def test_an_unreachable_ledger_does_not_slow_the_batch_down(services: Services, clock: FakeTime) -> None:
    """Failed flushes are not repeated with every token."""
    run = UnreachableRun(clock=clock)
    item = RecordingItem(job(), run)
    run_text_batch(item, TimedItems(clock=clock), services)
    assert item.text
    assert run.flushes <= 4


def test_a_text_whose_last_token_comes_too_late_is_complete(services: Services) -> None:
    """The text is complete, so its finish reason is not `timeout`."""
    whole = alone(job(), services)
    assert whole.outcome is not None
    last = whole.outcome.metadata["tokens_generated"]
    late = alone(job(), services, RecordingRun(stop_at=last, stop_with=JobTimeout("late")))
    assert late.outcome is not None
    assert late.text == whole.text
    assert late.outcome.metadata["finish_reason"] == whole.outcome.metadata["finish_reason"]


def test_jobs_that_join_a_running_batch_get_the_answers_they_get_alone(services: Services) -> None:
    """Greedy decoding does not depend on the batch."""
    jobs = [
        job(f"job-{n}", f"a {colour} star on a hill") for n, colour in enumerate(("red", "blue", "green"))
    ]
    expected = [alone(each, services).text for each in jobs]
    first, *others = [RecordingItem(each) for each in jobs]
    source = QueuedItems(others, after=3)
    run_text_batch(first, source, services)
    assert [item.text for item in (first, *others)] == expected
    assert max(source.batch_sizes) == 3


def test_a_text_that_ends_early_does_not_end_the_others(services: Services) -> None:
    """Cancelled texts and texts with a lost fence leave the batch."""
    cancelled = RecordingItem(job("b"), RecordingRun(stop_at=1))
    lost = RecordingItem(job("c"), RecordingRun(stop_at=1, stop_with=FenceLost("c")))
    first = RecordingItem(job("a"))
    run_text_batch(first, QueuedItems([cancelled, lost]), services)
    assert first.text == alone(job("a"), services).text
    assert isinstance(cancelled.error, Cancelled)
    assert isinstance(lost.error, FenceLost)


class StallingGate(Gate):
    """A gate that takes a minute for each check of one job."""

    def __init__(self, clock: FakeTime, job_id: str) -> None:
        super().__init__(factories.STAND_IN_TERMS)
        self.clock = clock
        self.job_id = job_id
        self.checks = 0

    def check_job(self, job: Any, generated: str = "") -> None:
        if job.id == self.job_id:
            self.clock.now += 60.0
            self.checks += 1


def test_a_text_that_holds_its_batch_up_takes_its_own_time(services: Services, clock: FakeTime) -> None:
    """Its companions reached their time limits, although nothing was wrong with them."""
    slow = RecordingItem(job("slow", max_tokens=8), RecordingRun())
    other = RecordingItem(job("other", max_tokens=64), RecordingRun())
    gate = StallingGate(clock, "slow")
    run_text_batch(other, TimedItems([slow], clock=clock), replace(services, gate=gate))
    assert slow.outcome is not None
    assert gate.checks >= 2
    assert (other.run.excluded_s, slow.run.excluded_s) == (60.0 * gate.checks, 0.0)


def test_the_time_limit_returns_the_text_so_far(services: Services, clock: FakeTime) -> None:
    """The outcome is completed, with the finish reason `timeout`."""
    item = RecordingItem(job(max_tokens=64), RecordingRun(stop_at=2, stop_with=JobTimeout("late")))
    run_text_batch(item, TimedItems(clock=clock), services)
    assert item.outcome is not None
    assert item.outcome.metadata["finish_reason"] == "timeout"
    assert alone(job(max_tokens=64), services).text.startswith(item.text)


def test_a_conversation_that_does_not_fit_is_refused(services: Services) -> None:
    """It is never truncated silently."""
    item = alone(job("a", "a fox " * 40_000), services)
    assert isinstance(item.error, InvalidParameters)
    assert item.error.field == "messages"


def test_an_enhancement_reports_the_enhanced_prompt(services: Services) -> None:
    """`chat_enhance` fills the callback's `enhancedPrompt` and names the model."""
    item = alone(job(type="chat_enhance", max_tokens=40), services)
    assert item.outcome is not None
    assert item.outcome.enhanced_prompt == item.text
    assert item.outcome.metadata["enhancement_strategy"] == "qwen"
    assert item.outcome.metadata["enhancement_source"] == "qwen_instruct"
    assert item.outcome.metadata["enhancement_model"] == item.outcome.metadata["model_name"]


@pytest.mark.parametrize("error", [JobTimeout("late"), RuntimeError("a crash")])
def test_an_enhancement_that_fails_returns_the_original_prompt(services: Services, error: Exception) -> None:
    """The outcome has the original prompt and the reason."""
    item = alone(job(type="chat_enhance"), services, RecordingRun(stop_at=1, stop_with=error))
    assert item.outcome is not None
    assert item.outcome.enhanced_prompt == item.text == PROMPT
    assert item.outcome.metadata["enhancement_strategy"] == "fallback"
    assert item.outcome.metadata["enhancement_reason"]


def test_a_cancelled_enhancement_is_cancelled(services: Services) -> None:
    """It does not fall back to the original prompt."""
    item = alone(job(type="chat_enhance"), services, RecordingRun(stop_at=1, stop_with=Cancelled("enough")))
    assert isinstance(item.error, Cancelled)


def test_a_text_that_the_gate_refuses_is_never_streamed(services: Services) -> None:
    """Generated text passes the gate before the caller gets any of it."""
    answer = alone(job(), services).text
    word = next(word for word in re.findall(r"[a-z]{4,}", answer) if word not in PROMPT)
    gate = Gate(Terms(minor=frozenset({"circle"}), sexual=frozenset({word})))
    item = alone(job(), replace(services, gate=gate))
    assert isinstance(item.error, PolicyViolation)
    assert word not in "".join(item.run.pieces)


class RecordingModeration:
    """A moderation service that refuses one word and records the texts."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.texts: list[str] = []

    def check(self, text: str) -> None:
        self.texts.append(text)
        if self.word in text:
            raise PolicyViolation("This request cannot be processed.")


def test_moderation_checks_the_request_and_the_answer(services: Services) -> None:
    """Each is checked once, and nothing is streamed before its check."""
    moderation = RecordingModeration("another word")
    item = alone(job(sfw_mode=True), replace(services, moderation=moderation))
    assert moderation.texts == [PROMPT, item.text]
    assert [piece for piece in item.run.pieces if piece] == [item.text]


@pytest.mark.parametrize("word", [PROMPT, " "])
def test_moderation_refuses_questions_and_answers(services: Services, word: str) -> None:
    """A refused text fails the job."""
    item = alone(job(sfw_mode=True), replace(services, moderation=RecordingModeration(word)))
    assert isinstance(item.error, PolicyViolation)
    assert "".join(item.run.pieces) == ""


def test_moderation_is_the_callers_choice(services: Services) -> None:
    """Without `sfw_mode` the service is not called."""
    moderation = RecordingModeration("")
    assert alone(job(), replace(services, moderation=moderation)).text
    assert moderation.texts == []


def test_a_missing_model_fails_the_whole_batch(services: Services, tmp_path: Path) -> None:
    """The workflow raises the error, and the task ends all items."""
    settings: Callable[..., Any] = load_settings
    missing = build(settings(_env_file=None, OURVIDZ_QWEN_MODEL=tmp_path / "nowhere"), "sdxl")
    with pytest.raises(ModelLoadError):
        run_text_batch(RecordingItem(job()), QueuedItems(), replace(services, models=missing))


def test_the_rendered_conversation_is_judged(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is tokenized, with what the template writes between the messages."""
    handed: list[str] = []
    monkeypatch.setattr(services.gate, "check_job", lambda job, *added: handed.extend(added))
    alone(job(text="Hills?", max_tokens=1), services)
    assert any(text.startswith("<|im_start|>user\nHills?<|im_end|>") for text in handed)
