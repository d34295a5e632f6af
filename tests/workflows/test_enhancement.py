from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ourvidz.errors import Cancelled, InvalidParameters, ModelLoadError, OutOfMemory, PolicyViolation
from ourvidz.jobs.job import ChatJob, VideoJob
from ourvidz.ledger.record import Enhancement
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import BatchDecoder, TextDelta, TextPipeline
from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.safety.gate import Gate, Terms
from ourvidz.settings import Settings
from ourvidz.workflows.enhancement import REFUSED, enhance, wording
from ourvidz.workflows.enhancing import LeasedEnhancement
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Services

GATE = Gate(Terms(minor=frozenset({"quokka"}), sexual=frozenset({"marmalade"})))
"""Neutral stand-ins; only both together are refused."""
SYSTEM = Settings.model_fields["enhance_system_prompt"].default


def job(**changed: Any) -> VideoJob:
    fields: dict[str, Any] = {
        "id": "job-1",
        "type": "video7b_fast_enhanced",
        "user_id": "user-1",
        "expected_time": 180,
        "prompt": "a kite over dunes",
        "steps": 2,
        "guidance_scale": 6.5,
        "width": 32,
        "height": 48,
        "frames": 5,
        "seed": 100,
        "enhance_prompt": True,
    }
    return VideoJob(**(fields | changed))


@dataclass
class Script:
    """A language model that says what it is told to, a piece a step; implements `TextPipeline`."""

    pieces: list[TextDelta | Exception]
    asked: list[ChatJob] = field(default_factory=list)
    inside: set[str] = field(default_factory=set)

    def load(self) -> None:
        """Always loaded."""

    def unload(self) -> None:
        """Nothing to let go of."""

    def info(self) -> dict[str, Any]:
        return {"name": "script"}

    def new_decoder(self) -> BatchDecoder:
        return self

    def add(self, key: str, job: ChatJob) -> int:
        self.asked.append(job)
        self.inside.add(key)
        return 1

    def step(self) -> list[TextDelta]:
        piece = self.pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return [piece]

    def remove(self, key: str) -> None:
        self.inside.discard(key)


def says(*texts: str) -> Script:
    """A model that says these pieces and then ends."""
    last = len(texts) - 1
    return Script(
        [TextDelta("job-1", text, at + 1, "stop" if at == last else None) for at, text in enumerate(texts)]
    )


@dataclass
class OneModel:
    """The models of a chat worker that has just this one."""

    pipeline: TextPipeline
    opened: list[str] = field(default_factory=list)

    def texts(self, model: str) -> TextPipeline:
        self.opened.append(model)
        return self.pipeline


def services(pipeline: TextPipeline) -> Services:
    return Services(models=OneModel(pipeline), store=None, gate=GATE, references=None)  # type: ignore[arg-type]


def words(pipeline: TextPipeline, given: VideoJob | None = None, **options: Any) -> dict[str, Any]:
    """The document of an enhancement that hears nothing and has a minute."""
    chosen = {"system_prompt": SYSTEM, "hear": lambda: None, "limit_s": 60.0} | options
    return enhance(given or job(), lambda: services(pipeline), **chosen)


def ticking(seconds: Iterable[float]) -> Callable[[], float]:
    times = iter(seconds)
    return lambda: next(times)


@dataclass
class Brought:
    """A run that brings what was found."""

    wording: dict[str, Any] | None


class TestWording:
    def test_a_job_that_wants_no_enhancement_is_told_nothing_about_it(self) -> None:
        """`enhancedPrompt` stays null, whatever the type is called."""
        said = wording(job(enhance_prompt=False), Brought({"prompt": "other words"}))
        assert (said.prompt, said.enhanced_prompt, said.told) == ("a kite over dunes", None, {})

    def test_what_was_found_is_used_and_told(self) -> None:
        """The pipeline gets the model's words, the caller learns whose they are."""
        said = wording(job(), Brought(words(says(" a kite over dunes, soft light"))))
        assert said.prompt == said.enhanced_prompt == "a kite over dunes, soft light"
        assert said.told["enhancement_strategy"] == "qwen"
        assert (said.told["enhancement_source"], said.told["enhancement_model"]) == ("qwen_base", "script")
        assert said.told["system_prompt_used"] == "default"
        assert said.told["enhancement_time"] >= 0

    @pytest.mark.parametrize("found", [None, {"reason": "too late"}])
    def test_without_any_the_prompt_is_used_as_it_is_and_that_is_said(
        self, found: dict[str, Any] | None
    ) -> None:
        """The job goes on; its caller learns that the words are its own and no system prompt was read."""
        said = wording(job(system_prompt="be brief"), Brought(found))
        assert said.prompt == said.enhanced_prompt == "a kite over dunes"
        assert said.told["enhancement_strategy"] == "fallback"
        assert said.told["enhancement_reason"] == (
            "too late" if found else "The prompt was not enhanced before its job began: it was used as it is."
        )
        assert (said.told["enhancement_source"], said.told["system_prompt_used"]) == (None, "none")


class TestAsking:
    def test_the_base_model_is_asked_to_go_on(self) -> None:
        """As the contract has it: 512 tokens, temperature 0.7, the job's own seed, no conversation."""
        model = says(" x")
        words(model, job(system_prompt="Say more.", prompt="a kite\nover dunes"))
        (asked,) = model.asked
        (message,) = asked.messages
        assert message.content == "Say more.\n\nPrompt: a kite over dunes\nEnriched:"
        assert (asked.model, asked.max_tokens, asked.temperature, asked.seed) == ("qwen_base", 512, 0.7, 100)

    def test_a_caller_may_choose_length_and_temperature(self) -> None:
        """A bolder model, or a shorter one."""
        model = says(" x")
        words(model, job(enhance_tokens=64, enhance_temperature=0.0))
        assert (model.asked[0].max_tokens, model.asked[0].temperature) == (64, 0.0)

    def test_without_a_system_prompt_the_operators_stands_above_it(self) -> None:
        """And the callback tells which it was."""
        model = says(" x")
        assert words(model)["system_prompt"] == "default"
        assert model.asked[0].messages[0].content.startswith(f"{SYSTEM}\n\nPrompt: ")
        assert words(says(" x"), job(system_prompt="Say more."))["system_prompt"] == "custom"

    def test_the_answer_is_the_first_line_that_is_not_blank(self) -> None:
        """A base model goes on with the next example, which is nobody's prompt."""
        model = says("\n", " a ki", "te\nPro", "mpt: a lake")
        assert words(model)["prompt"] == "a kite"
        assert len(model.pieces) == 1
        assert model.inside == set()


class TestFallingBack:
    """Whatever goes wrong, the job goes on with its own words and says why."""

    def test_moderation_where_the_job_asks_for_it(self) -> None:
        """An operator's own judge hears the words before they are used, and only of jobs that want that."""

        class Judge:
            def judge(self, text: str) -> None:
                raise PolicyViolation(f"not {text}")

        def judged(given: VideoJob) -> dict[str, Any]:
            use = replace(services(says(" a kite")), moderation=Judge())
            return enhance(given, lambda: use, system_prompt=SYSTEM, hear=lambda: None, limit_s=60.0)

        assert judged(job(flags={"sfw_mode": True}))["reason"] == REFUSED
        assert judged(job())["prompt"] == "a kite"

    @pytest.mark.parametrize("texts", [("",), (" ", "\n"), ("\n\n",)])
    def test_an_empty_answer(self, texts: tuple[str, ...]) -> None:
        """An empty prompt would make noise."""
        assert "nothing to say" in words(says(*texts))["reason"]

    @pytest.mark.parametrize(
        "failure",
        [
            OutOfMemory("no room"),
            InvalidParameters("the prompt is too long"),
            ModelLoadError("a file is missing"),
            RuntimeError("a secret path /home/x"),
        ],
    )
    def test_a_model_that_fails(self, failure: Exception) -> None:
        """Of the failure itself the caller hears nothing: it is in the log."""
        found = words(Script([TextDelta("job-1", "a", 1), failure]))
        assert found == {"reason": "The enhancement of the prompt failed: it was used as it is."}

    def test_a_worker_without_the_model(self) -> None:
        """Services that cannot even be built are no reason to fail either."""

        def broken() -> Services:
            raise ModelLoadError("there is no checkpoint")

        found = enhance(job(), broken, system_prompt=SYSTEM, hear=lambda: None, limit_s=60)
        assert "failed" in found["reason"]

    def test_time_is_up(self) -> None:
        """The generation must not wait for a model that is slow."""
        found = words(says("a ", "b ", "c"), limit_s=1.0, clock=ticking([0.0, 0.5, 1.5]))
        assert "too long" in found["reason"]

    def test_a_text_that_the_gate_refuses(self) -> None:
        """Judged together with what the caller wrote: a signal of each kind anywhere is a hit."""
        asked = job(prompt="a quokka on a hill")
        assert "could not be used" in words(says(" a quokka and marmalade"), asked)["reason"]
        assert "could not be used" in words(says(" marmalade"), asked)["reason"]
        assert words(says(" marmalade"))["prompt"] == "marmalade"


class TestStopping:
    @pytest.mark.parametrize("stop", [Cancelled("enough"), FenceLost("job-1")])
    def test_a_lost_lease_or_a_cancel_ends_it_before_the_next_token(self, stop: Exception) -> None:
        """Nobody waits for these words any more: there is nothing to go on with."""
        model = says("a ", "b ", "c")
        heard: list[int] = []

        def hear() -> None:
            heard.append(len(model.pieces))
            if len(heard) == 3:
                raise stop

        with pytest.raises(type(stop)):
            words(model, hear=hear)
        assert heard == [3, 3, 2]
        assert model.inside == set()


class TestLease:
    """The lease, on a ledger whose clock the test moves."""

    @pytest.fixture
    def ledger(self, make_ledger: Callable[..., Ledger]) -> Ledger:
        self.now = 1000.0
        return make_ledger(clock=lambda: self.now)

    def held(self, ledger: Ledger) -> Enhancement:
        ledger.register(job(), priority=6)
        held = ledger.begin_enhancement("job-1", 1, lease_s=10, token="e1")
        assert held is not None
        return held

    def test_it_is_renewed_while_tokens_come(self, ledger: Ledger) -> None:
        """And not with every token: most of them cost no word to the ledger."""
        lease = LeasedEnhancement(self.held(ledger), ledger, lease_s=10, clock=lambda: self.now)
        for _ in range(200):
            self.now += 0.1
            lease.hear()
        assert ledger.begin_enhancement("job-1", 1, lease_s=10, token="e2") is None

    def test_a_cancel_is_heard(self, ledger: Ledger) -> None:
        """A cancelled job must not keep the model busy."""
        lease = LeasedEnhancement(self.held(ledger), ledger, lease_s=10, clock=lambda: self.now)
        ledger.request_cancel("job-1")
        with pytest.raises(Cancelled):
            lease.hear()

    def test_a_sweep_that_gave_up_is_heard(self, ledger: Ledger) -> None:
        """Generation has been published without the words."""
        lease = LeasedEnhancement(self.held(ledger), ledger, lease_s=10, clock=lambda: self.now)
        ledger.skip_enhancement("job-1", run=1, reason="too late")
        with pytest.raises(FenceLost):
            lease.hear()


def test_the_models_words_keep_the_prompts_words() -> None:
    """The real thing: the base model that ships goes on with the prompt and adds to it."""
    found = words(
        QwenPipeline(find_qwen(None, "base"), "base"), job(prompt="a red circle on a blue background")
    )
    assert found["model"].startswith("tiny-qwen")
    assert found["prompt"].startswith("a red circle on a blue background")
    assert len(found["prompt"].split()) > 8
