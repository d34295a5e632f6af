"""Fixtures of the ledger tests: a ledger whose clock advances only when the test advances it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ourvidz.jobs.job import ChatJob, ImageJob, Message
from ourvidz.ledger.store import Ledger


class Clock:
    """A clock that advances only when the test calls it."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def clock() -> Clock:
    """The clock that the ledger under test reads."""
    return Clock()


@pytest.fixture
def ledger(make_ledger: Callable[..., Ledger], clock: Clock) -> Ledger:
    """The ledger under test. Documents over 2 KiB are oversized."""
    return make_ledger(clock=clock, document_limit=2048)


@pytest.fixture
def image_job() -> Callable[..., ImageJob]:
    """Returns a factory of image jobs; keyword arguments override the defaults."""

    def make(job_id: str = "job-1", **changes: object) -> ImageJob:
        defaults: dict[str, object] = {
            "id": job_id,
            "type": "sdxl_image_fast",
            "user_id": "user-1",
            "expected_time": 30.0,
            "prompt": "a red circle above a blue lake",
            "steps": 15,
            "guidance_scale": 6.0,
            "width": 1024,
            "height": 1024,
            "seed": 7,
        }
        return ImageJob.model_validate(defaults | changes)

    return make


@pytest.fixture
def chat_job() -> Callable[..., ChatJob]:
    """Returns a factory of chat jobs; keyword arguments override the defaults."""

    def make(job_id: str = "chat-1", **changes: object) -> ChatJob:
        defaults: dict[str, object] = {
            "id": job_id,
            "type": "chat_conversation",
            "expected_time": 15.0,
            "messages": (Message(role="user", content="What is a lake?"),),
            "max_tokens": 64,
            "seed": 7,
        }
        return ChatJob.model_validate(defaults | changes)

    return make
