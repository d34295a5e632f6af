"""The workflow of prompt enhancement, and its lease."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ourvidz.errors import Cancelled, InvalidParameters, ModelLoadError, OutOfMemory, PolicyViolation
from ourvidz.jobs.job import ChatJob, VideoJob
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.base import BatchDecoder, TextDelta, TextPipeline
from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.settings import Settings
from ourvidz.workflows.enhancement import (
    EMPTY,
    FAILED,
    NOT_STARTED,
    REFUSED,
    TIMED_OUT,
    EnhancementLease,
    ResolvedPrompt,
    enhance,
    resolve_prompt,
)
from ourvidz.workflows.run import FenceLost
from ourvidz.workflows.services import Services
from tests import factories
from tests.factories import STAND_IN_GATE, RecordingRun

SYSTEM_PROMPT = Settings.model_fields["enhance_system_prompt"].default


def job(**changes: Any) -> VideoJob:
    """A Wan job whose prompt is to be enhanced."""
    fields = {"type": "video7b_fast_enhanced", "prompt": "a kite over dunes", "enhance_prompt": True}
    return factories.video_job(**{"seed": 100, **fields, **changes})


@dataclass
class ScriptedPipeline:
    """A `TextPipeline` and its decoder that return the given deltas, one a step, and raise given errors."""

    deltas: list[TextDelta | Exception]
    jobs: list[ChatJob] = field(default_factory=list)
    decoding: set[str] = field(default_factory=set)

    def load(self) -> None:
        """Do nothing."""

    def unload(self) -> None:
        """Do nothing."""

    def info(self) -> dict[str, Any]:
        return {"name": "script"}

    def new_decoder(self) -> BatchDecoder:
        return self

    def add(self, key: str, job: ChatJob) -> int:
        self.jobs.append(job)
        self.decoding.add(key)
        return 1

    def step(self) -> list[TextDelta]:
        delta = self.deltas.pop(0)
        if isinstance(delta, Exception):
            raise delta
        return [delta]

    def remove(self, key: str) -> None:
        self.decoding.discard(key)


def scripted(*texts: str) -> ScriptedPipeline:
    """A pipeline whose answer is these pieces."""
    last = len(texts) - 1
    return ScriptedPipeline(
        [TextDelta("job-1", text, n + 1, "stop" if n == last else None) for n, text in enumerate(texts)]
    )


@dataclass
class OneModel:
    """The models of a chat worker with one language model."""

    pipeline: TextPipeline

    def texts(self, model: str) -> TextPipeline:
        return self.pipeline


def services(pipeline: TextPipeline) -> Services:
    return Services(models=OneModel(pipeline), store=None, gate=STAND_IN_GATE, references=None)  # type: ignore[arg-type]


def run(pipeline: TextPipeline, requested: VideoJob | None = None, **options: Any) -> dict[str, Any]:
    """Run an enhancement within a minute, under a lease that holds; return its document."""
    defaults = {"system_prompt": SYSTEM_PROMPT, "check_lease": lambda: None, "limit_s": 60.0}
    return enhance(requested or job(), lambda: services(pipeline), **(defaults | options))


def ticking(seconds: Iterable[float]) -> Callable[[], float]:
    times = iter(seconds)
    return lambda: next(times)


class TestResolvePrompt:
    def test_a_job_without_enhancement_has_no_metadata_about_it(self) -> None:
        """`enhancedPrompt` stays null, whatever the type is called."""
        resolved = resolve_prompt(
            job(enhance_prompt=False), RecordingRun(enhancement_result={"prompt": "another prompt"})
        )
        assert resolved == ResolvedPrompt("a kite over dunes")

    def test_an_enhanced_prompt_is_used_and_reported(self) -> None:
        """The pipeline gets the enhanced prompt, and the callback names the model."""
        result = run(scripted(" a kite over dunes, soft light"))
        resolved = resolve_prompt(job(), RecordingRun(enhancement_result=result))
        assert resolved.prompt == resolved.enhanced_prompt == "a kite over dunes, soft light"
        assert resolved.metadata.pop("enhancement_time") >= 0
        assert resolved.metadata == {
            "enhancement_strategy": "qwen",
            "enhancement_source": "qwen_base",
            "enhancement_model": "script",
            "system_prompt_used": "default",
        }

    def test_a_document_of_an_older_release_names_the_checkpoint_as_source(self) -> None:
        """Workers are updated one after the other."""
        result = {"prompt": "a kite", "source": "qwen-3b", "seconds": 1.5, "system_prompt": "custom"}
        metadata = resolve_prompt(job(), RecordingRun(enhancement_result=result)).metadata
        assert (metadata["enhancement_source"], metadata["enhancement_model"]) == ("qwen_base", "qwen-3b")

    @pytest.mark.parametrize("result", [None, {"reason": "too late"}])
    def test_without_an_enhanced_prompt_the_original_is_used(self, result: dict[str, Any] | None) -> None:
        """The metadata gives the reason, and says that no system prompt was used."""
        run = RecordingRun(enhancement_result=result)
        resolved = resolve_prompt(job(system_prompt="be brief"), run)
        assert resolved.prompt == resolved.enhanced_prompt == "a kite over dunes"
        assert resolved.metadata == {
            "enhancement_strategy": "fallback",
            "enhancement_reason": "too late" if result else NOT_STARTED,
            "enhancement_source": None,
            "system_prompt_used": "none",
        }


class TestDecoding:
    def test_the_base_model_continues_the_template(self) -> None:
        """As the contract says: 512 tokens, temperature 0.7, the job's own seed, no conversation."""
        pipeline = scripted(" x")
        run(pipeline, job(system_prompt="Say more.", prompt="a kite\nover dunes"))
        (text_job,) = pipeline.jobs
        (message,) = text_job.messages
        assert message.content == "Say more.\n\nPrompt: a kite over dunes\nEnriched:"
        assert (text_job.model, text_job.max_tokens) == ("qwen_base", 512)
        assert (text_job.temperature, text_job.seed) == (0.7, 100)

    def test_a_caller_may_choose_length_and_temperature(self) -> None:
        """With `config.enhance_tokens` and `config.enhance_temperature`."""
        pipeline = scripted(" x")
        run(pipeline, job(enhance_tokens=64, enhance_temperature=0.0))
        assert (pipeline.jobs[0].max_tokens, pipeline.jobs[0].temperature) == (64, 0.0)

    def test_without_a_system_prompt_the_operators_is_used(self) -> None:
        """The document says which system prompt was used."""
        pipeline = scripted(" x")
        assert run(pipeline)["system_prompt"] == "default"
        assert pipeline.jobs[0].messages[0].content.startswith(f"{SYSTEM_PROMPT}\n\nPrompt: ")
        assert run(scripted(" x"), job(system_prompt="Say more."))["system_prompt"] == "custom"

    def test_the_answer_is_the_first_line_that_is_not_blank(self) -> None:
        """A base model goes on with another example after it; decoding stops before that."""
        pipeline = scripted("\n", " a ki", "te\nPro", "mpt: a lake")
        assert run(pipeline)["prompt"] == "a kite"
        assert len(pipeline.deltas) == 1
        assert pipeline.decoding == set()


class TestFallback:
    """After any failure the job uses its original prompt, and the document has the reason."""

    def test_a_text_that_moderation_refuses_falls_back(self) -> None:
        """The moderation service also checks the enhanced prompts of jobs with `sfw_mode`."""

        class Moderation:
            def check(self, text: str) -> None:
                raise PolicyViolation(f"not {text}")

        def moderated(requested: VideoJob) -> dict[str, Any]:
            with_moderation = replace(services(scripted(" a kite")), moderation=Moderation())
            return enhance(
                requested,
                lambda: with_moderation,
                system_prompt=SYSTEM_PROMPT,
                check_lease=lambda: None,
                limit_s=60.0,
            )

        assert moderated(job(flags={"sfw_mode": True}))["reason"] == REFUSED
        assert moderated(job())["prompt"] == "a kite"

    @pytest.mark.parametrize("texts", [("",), (" ", "\n"), ("\n\n",)])
    def test_an_empty_text_falls_back(self, texts: tuple[str, ...]) -> None:
        """An empty prompt would generate noise."""
        assert run(scripted(*texts)) == {"reason": EMPTY}

    @pytest.mark.parametrize(
        "error",
        [
            OutOfMemory("no room"),
            InvalidParameters("the prompt is too long"),
            ModelLoadError("a file is missing"),
            RuntimeError("a secret path /home/x"),
        ],
    )
    def test_an_error_of_the_model_falls_back(self, error: Exception) -> None:
        """The error itself is logged; the caller does not see it."""
        assert run(ScriptedPipeline([TextDelta("job-1", "a", 1), error])) == {"reason": FAILED}

    def test_a_missing_model_falls_back(self) -> None:
        """Services that cannot be built do not fail the job either."""

        def fail() -> Services:
            raise ModelLoadError("there is no checkpoint")

        document = enhance(job(), fail, system_prompt=SYSTEM_PROMPT, check_lease=lambda: None, limit_s=60)
        assert document == {"reason": FAILED}

    def test_an_expired_time_limit_falls_back(self) -> None:
        """The generation must not wait for a slow model."""
        document = run(scripted("a ", "b ", "c"), limit_s=1.0, clock=ticking([0.0, 0.5, 1.5]))
        assert document == {"reason": TIMED_OUT}

    def test_a_text_that_the_gate_refuses_falls_back(self) -> None:
        """It is checked together with the caller's texts: one term of each kind anywhere is a hit."""
        requested = job(prompt="a quokka on a hill")
        assert run(scripted(" a quokka and marmalade"), requested) == {"reason": REFUSED}
        assert run(scripted(" marmalade"), requested) == {"reason": REFUSED}
        assert run(scripted(" marmalade"))["prompt"] == "marmalade"


class TestStopping:
    @pytest.mark.parametrize("error", [Cancelled("enough"), FenceLost("job-1")])
    def test_a_cancel_or_a_lost_lease_stops_decoding_before_the_next_token(self, error: Exception) -> None:
        """The result would be discarded."""
        pipeline = scripted("a ", "b ", "c")
        remaining: list[int] = []

        def check_lease() -> None:
            remaining.append(len(pipeline.deltas))
            if len(remaining) == 3:
                raise error

        with pytest.raises(type(error)):
            run(pipeline, check_lease=check_lease)
        assert remaining == [3, 3, 2]
        assert pipeline.decoding == set()


class TestLease:
    """The lease of an enhancement, on a ledger whose clock the test advances."""

    @pytest.fixture
    def ledger(self, make_ledger: Callable[..., Ledger]) -> Ledger:
        self.now = 1000.0
        return make_ledger(clock=lambda: self.now)

    @pytest.fixture
    def lease(self, ledger: Ledger) -> EnhancementLease:
        """The lease of an enhancement that has just begun."""
        ledger.register(job(), priority=6)
        claimed = ledger.begin_enhancement("job-1", 1, lease_s=10, token="e1")
        assert claimed is not None
        return EnhancementLease(claimed, ledger, lease_s=10, clock=lambda: self.now)

    def test_the_lease_is_renewed_while_tokens_are_generated(
        self, ledger: Ledger, lease: EnhancementLease
    ) -> None:
        """Each check renews it, so that it lasts longer than ten seconds."""
        for _ in range(200):
            self.now += 0.1
            lease.check()
        assert ledger.begin_enhancement("job-1", 1, lease_s=10, token="e2") is None

    def test_a_cancelled_job_stops_the_enhancement(self, ledger: Ledger, lease: EnhancementLease) -> None:
        """The model is free for other jobs."""
        ledger.request_cancel("job-1")
        with pytest.raises(Cancelled):
            lease.check()

    def test_an_enhancement_that_the_sweep_gave_up_is_stopped(
        self, ledger: Ledger, lease: EnhancementLease
    ) -> None:
        """The generation has been published without it."""
        ledger.skip_enhancement("job-1", run=1, reason="too late")
        with pytest.raises(FenceLost):
            lease.check()


def test_the_base_model_that_ships_keeps_the_prompt_and_adds_to_it() -> None:
    """Runs on the packaged base model."""
    document = run(
        QwenPipeline(find_qwen(None, "base"), "base"), job(prompt="a red circle on a blue background")
    )
    assert document["model"].startswith("tiny-qwen")
    assert document["prompt"].startswith("a red circle on a blue background")
    assert len(document["prompt"].split()) > 8
