"""The page about registrations shows what is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ourvidz.callbacks import payload
from ourvidz.liveness import registration
from ourvidz.records.record import OutboxEvent
from ourvidz.settings import load_settings

PAGE = "docs/reference/registration.md"

OpenPage = Callable[[str], Any]


def example(page: OpenPage, title: str) -> dict[str, Any]:
    """The block of the page with a title."""
    (text,) = (block.text for block in page(PAGE).blocks("json") if block.title == title)
    found: dict[str, Any] = json.loads(text)
    return found


def built(kind: Any) -> dict[str, Any]:
    """The document of an event of the chat worker that the page shows."""
    settings = load_settings(
        _env_file=None,
        RUNPOD_POD_ID="k2x9",
        SUPABASE_URL="https://abc.supabase.co",
        OURVIDZ_PORTS=(7860, 7861),
    )
    made = registration.of_worker(settings, "chat", models={"qwen_base": {}, "qwen_instruct": {}})
    assert made is not None
    event = OutboxEvent(
        event_id="msg_1",
        job_id="@registration:chat",
        run=1,
        sequence=1795867200000001,
        kind=kind,
        attempt=0,
        at=1795867200.0,
        queued_at=1795867200.0,
        claimed_at=None,
        worker_id="chat@gpu-host-gpu0",
        callback_url=made.callback_url,
        callback_metadata=json.loads(made.document),
        outcome=None,
        state="pending",
        due_at=1795867200.0,
        deliveries=1,
    )
    return payload.build(event, worker_version="1")


def test_the_example_is_what_is_sent(page: OpenPage) -> None:
    """Authors of functions write them from it."""
    assert example(page, "registration") == built("registered")


def test_the_example_of_an_end_is_a_part_of_what_is_sent(page: OpenPage) -> None:
    """With a `worker_url` the functions in the field would register the worker again."""
    assert example(page, "end of a registration").items() <= built("gone").items()


def test_every_field_is_described(page: OpenPage) -> None:
    """And no other."""
    fields = {row[0].strip("`") for row in page(PAGE).rows("field", "meaning")}
    assert fields == set(built("gone"))
