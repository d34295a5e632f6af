"""Makers of payloads and jobs, and the error of a rejected payload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.errors import CallerError
from ourvidz.jobs.dialects import Defaults, parse
from ourvidz.jobs.job import ChatJob, ImageJob, VideoJob

DEFAULTS = Defaults(
    callback_hosts=frozenset({"hooks.example.com", "other.example.com:8443"}), draw_seed=lambda: 4711
)


def make_payload(kind: str = "sdxl_image_fast", **fields: Any) -> dict[str, Any]:
    return {"id": "j1", "type": kind, "prompt": "a heron", "user_id": "u1", **fields}


@pytest.fixture
def body() -> Callable[..., dict[str, Any]]:
    """Make a payload of a type; keyword arguments add or replace top-level fields."""
    return make_payload


@pytest.fixture
def image() -> Callable[..., ImageJob]:
    """Parse an SDXL payload with these top-level fields."""

    def make(**fields: Any) -> ImageJob:
        job = parse(make_payload(**fields), DEFAULTS)
        assert isinstance(job, ImageJob)
        return job

    return make


@pytest.fixture
def video() -> Callable[..., VideoJob]:
    """Parse a Wan payload with these top-level fields; `kind` is its type."""

    def make(**fields: Any) -> VideoJob:
        job = parse(make_payload(fields.pop("kind", "video_fast"), **fields), DEFAULTS)
        assert isinstance(job, VideoJob)
        return job

    return make


@pytest.fixture
def chat() -> Callable[..., ChatJob]:
    """Parse a chat payload with these top-level fields."""

    def make(**fields: Any) -> ChatJob:
        job = parse({"id": "c1", "type": "chat_conversation", **fields}, DEFAULTS)
        assert isinstance(job, ChatJob)
        return job

    return make


@pytest.fixture
def refusal() -> Callable[[object], CallerError]:
    """Parse an invalid payload and return its error."""

    def parse_invalid(payload: object) -> CallerError:
        with pytest.raises(CallerError) as refused:
            parse(payload, DEFAULTS)
        return refused.value

    return parse_invalid
