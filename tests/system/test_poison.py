"""Texts that kill or stop the process that decodes them: only they fail, whoever shared their batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ourvidz import dispatch
from ourvidz.errors import JobTimeout, WorkerLost
from ourvidz.settings import load_settings
from ourvidz.wiring import control
from tests.factories import publishing_to
from tests.system.paced_models import HANG, POISON
from tests.system.test_deploys import WORKER, Deployment

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

TIME_LIMIT_S = 4.0
"""The hard limit is half as long again, and longer than Celery takes to notice that a child is dead."""


@pytest.fixture
def deployment(redis_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """A chat worker that is about to start, with short time limits."""
    with ExitStack() as stack:
        deployment = Deployment(redis_url, tmp_path / "state")
        stack.callback(deployment.destroy)
        limits = {"chat_conversation": TIME_LIMIT_S}
        deployment.variables |= {"OURVIDZ_TIME_LIMITS_S": json.dumps(limits), "OURVIDZ_MODEL_LOAD_S": "0"}
        parsed = {"OURVIDZ_TIME_LIMITS_S": limits}
        settings = load_settings(_env_file=None, **(deployment.variables | parsed))
        stack.enter_context(publishing_to(redis_url))
        stack.enter_context(control.using(control.build(settings, ledger=deployment.ledger)))
        yield deployment


def submit(job_id: str, prompt: str = "What is a tide?") -> None:
    dispatch.submit({"id": job_id, "type": "chat_conversation", "prompt": prompt})


def assert_completed_as_first_attempt(deployment: Deployment, *job_ids: str) -> None:
    for job_id in job_ids:
        record = deployment.record(job_id)
        assert (record.status, record.attempt, record.failures) == ("completed", 1, {}), record


def test_only_the_text_that_kills_or_stops_its_worker_fails(deployment: Deployment) -> None:
    """Its companions were charged as often as it was, and failed with it."""
    command = (*WORKER[:-1], "chat")
    for job_id, prompt in (("a", "a fox"), ("hang", f"a {HANG}"), ("b", "a heron")):
        submit(job_id, prompt)
    deployment.start(command)
    deployment.wait_for(lambda: deployment.record("hang").finished, "the text that hangs did not end", 40)
    outcome = deployment.record("hang").outcome
    assert outcome is not None
    assert outcome.error is not None
    assert (outcome.error.code, deployment.record("hang").failures) == (JobTimeout.code, {})
    ended = lambda *ids: all(deployment.record(job_id).finished for job_id in ids)  # noqa: E731
    deployment.wait_for(lambda: ended("a", "b"), "its companions did not run again", 40)
    assert_completed_as_first_attempt(deployment, "a", "b")

    dispatch.pause("chat_queue")
    for job_id, prompt in (("c", "a lighthouse"), ("poison", f"a {POISON}"), ("d", "a kite")):
        submit(job_id, prompt)
    dispatch.resume("chat_queue")
    deployment.wait_for(lambda: ended("c", "poison", "d"), "not all texts ended", 40)
    assert_completed_as_first_attempt(deployment, "c", "d")
    outcome = deployment.record("poison").outcome
    assert outcome is not None
    assert outcome.error is not None
    assert (outcome.error.code, deployment.record("poison").attempt) == (WorkerLost.code, WorkerLost.attempts)
