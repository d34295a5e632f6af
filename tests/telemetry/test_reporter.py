"""Batches of documents, and receivers that hang, refuse or are away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from ourvidz.net.client import HttpResponse, RequestFailure
from ourvidz.telemetry.reporter import MetricsReporter, post_to
from tests.telemetry.conftest import MetricsReceiver

PATIENCE_S = 20.0


@pytest.fixture
def make_reporter() -> Iterator[Callable[..., MetricsReporter]]:
    """Make reporters with short pauses; each is closed after the test."""
    with ExitStack() as stack:

        def make(post: Any, **options: Any) -> MetricsReporter:
            reporter = MetricsReporter(post, **{"interval_s": 0.01, "max_delay_s": 0.01, **options})
            stack.callback(reporter.close, PATIENCE_S)
            return reporter

        yield make


class Answers:
    """Stands in for the receiver: each post gets the next answer, the last one again and again."""

    def __init__(self, *answers: HttpResponse | RequestFailure) -> None:
        self._answers = list(answers)
        self.posts = 0
        self.changed = threading.Condition()

    def __call__(self, body: bytes) -> HttpResponse | RequestFailure:
        with self.changed:
            self.posts += 1
            self.changed.notify_all()
            return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def status(number: int) -> HttpResponse:
    return HttpResponse(number, {})


def wait_for_counts(reporter: MetricsReporter, **expected: int) -> None:
    with reporter._changed:
        assert reporter._changed.wait_for(
            lambda: all(reporter.counts()[name] == count for name, count in expected.items()), PATIENCE_S
        ), reporter.counts()


def test_documents_are_sent_together_and_in_order(receiver: MetricsReceiver, make_reporter: Any) -> None:
    """A busy worker costs its receiver a request in two seconds and not one for each job."""
    reporter = make_reporter(post_to(receiver.url, "secret"), interval_s=0.2)
    for number in range(30):
        reporter.add("worker_metrics", {"number": number})
        reporter.add("completion_stats", {"number": number})
    wait_for_counts(reporter, sent=60, dropped=0)
    for kind in ("worker_metrics", "completion_stats"):
        assert [document["number"] for document in receiver.of_kind(kind)] == list(range(30))
    assert len(receiver.bodies) <= 3
    assert receiver.headers[0]["authorization"] == "Bearer secret"
    assert receiver.headers[0]["content-type"] == "application/json"


def test_a_batch_has_a_largest_size(make_reporter: Any) -> None:
    """After an outage the receiver is not sent everything at once."""
    answers = Answers(status(204))
    reporter = make_reporter(answers, batch_size=10, interval_s=0.2)
    for number in range(25):
        reporter.add("worker_metrics", {"number": number})
    wait_for_counts(reporter, sent=25)
    assert answers.posts == 3


def test_a_receiver_that_hangs_delays_nobody_and_fills_no_memory(
    receiver: MetricsReceiver, make_reporter: Any
) -> None:
    """One request hangs, the latest documents wait, and what is dropped is counted."""
    receiver.released.clear()
    reporter = make_reporter(post_to(receiver.url, None), capacity=100, batch_size=10)
    reporter.add("worker_metrics", {"number": 0})
    receiver.wait_until(lambda: len(receiver.bodies) == 1)
    for number in range(1, 5001):
        reporter.add("worker_metrics", {"number": number})
    assert reporter.counts() == {"sent": 0, "dropped": 4900}
    assert len(receiver.bodies) == 1
    receiver.released.set()
    wait_for_counts(reporter, sent=101)
    assert [document["number"] for document in receiver.of_kind("worker_metrics")][1:] == list(
        range(4901, 5001)
    )


@pytest.mark.parametrize("answer", [status(503), status(429), RequestFailure("the connection failed")])
def test_a_batch_is_sent_again_until_it_is_taken(make_reporter: Any, answer: Any) -> None:
    """A receiver that restarts misses nothing."""
    answers = Answers(answer, answer, answer, status(200))
    reporter = make_reporter(answers)
    reporter.add("worker_metrics", {})
    wait_for_counts(reporter, sent=1, dropped=0)
    assert answers.posts == 4


@pytest.mark.parametrize("number", [301, 400, 401, 413])
def test_a_batch_that_is_refused_is_dropped(make_reporter: Any, number: int) -> None:
    """It would be refused again, and stand before the next ones."""
    answers = Answers(status(number), status(200))
    reporter = make_reporter(answers)
    reporter.add("worker_metrics", {})
    wait_for_counts(reporter, dropped=1)
    reporter.add("worker_metrics", {})
    wait_for_counts(reporter, sent=1, dropped=1)


def test_a_document_that_json_cannot_express_ends_no_thread(make_reporter: Any) -> None:
    """It is dropped; the next one is sent."""
    reporter = make_reporter(Answers(status(200)))
    reporter.add("worker_metrics", {"generation_time": float("nan")})
    wait_for_counts(reporter, dropped=1)
    reporter.add("worker_metrics", {})
    wait_for_counts(reporter, sent=1)


def test_a_worker_that_ends_sends_what_waits_once(make_reporter: Any) -> None:
    """A deploy loses nothing where the receiver answers, and takes no longer where it does not."""
    answers = Answers(status(200))
    reporter = make_reporter(answers, interval_s=3600)
    reporter.add("worker_metrics", {})
    reporter.close(PATIENCE_S)
    assert reporter.counts() == {"sent": 1, "dropped": 0}
    away = Answers(status(503))
    reporter = make_reporter(away, interval_s=3600, max_delay_s=3600)
    reporter.add("worker_metrics", {})
    reporter.close(PATIENCE_S)
    assert reporter.counts() == {"sent": 0, "dropped": 1}
    assert away.posts == 1


def test_a_worker_without_jobs_has_no_thread(make_reporter: Any) -> None:
    """Nor does one that is closed before its first job wait."""
    before = threading.active_count()
    make_reporter(Answers(status(200))).close(PATIENCE_S)
    assert threading.active_count() == before
