"""The callbacks page describes the payloads that a receiver gets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from ourvidz.callbacks import payload, signing
from ourvidz.callbacks.retry import RETRIED_STATUSES, max_backoff_s
from ourvidz.errors import Cancelled
from ourvidz.jobs.outcome import Outcome
from ourvidz.testing import Eager

pytestmark = pytest.mark.model

CALLBACKS = "docs/reference/callbacks.md"
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAA"
    "DUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""An image of one pixel."""
JOB = {"id": "one", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me", "config": {"steps": 1}}
CHAT = {"id": "two", "type": "chat_enhance", "prompt": "a red circle", "config": {"max_tokens": 8}}
ENHANCED = {
    "id": "three",
    "type": "video7b_fast_enhanced",
    "prompt": "a red circle",
    "user_id": "me",
    "config": {"steps": 1, "frames": 5, "size": "64*64", "max_tokens": 8},
}
WITH_REFERENCE = {
    "id": "four",
    "type": "sdxl_image_high",
    "prompt": "a hill",
    "user_id": "me",
    "config": {"steps": 1, "image": PIXEL, "num_images": 3},
}

OpenPage = Callable[[str], Any]


def example(page: Any, title: str) -> dict[str, Any]:
    """Return the JSON block with a title."""
    document: dict[str, Any] = next(json.loads(b.text) for b in page.blocks("json") if b.title == title)
    return document


def shape(value: Any) -> Any:
    """Return the names in a document, without its values."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else None


def names(rows: list[list[str]]) -> set[str]:
    """Return the names in the first cells of rows."""
    return {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}


def test_the_example_has_exactly_the_fields_of_a_real_callback(page: OpenPage, ourvidz_eager: Eager) -> None:
    """Authors of receivers use this example, so it is compared with the callback of an eager job."""
    ourvidz_eager.submit(JOB)
    sent = ourvidz_eager.callbacks.of("one")[-1].payload
    assert shape(example(page(CALLBACKS), "callback")) == shape(sent)


def test_the_partial_example_has_the_values_of_a_cancelled_job(page: OpenPage, ourvidz_eager: Eager) -> None:
    """The example shows only the fields in which a job without a result differs."""
    ourvidz_eager.submit(JOB)
    completed_event = ourvidz_eager.control.ledger.list_events("delivered", 1)[0]
    event = replace(
        completed_event,
        kind="cancelled",
        outcome=Outcome.failure(Cancelled("the job was cancelled")),
        sequence=2,
    )
    sent = payload.build(event, worker_version="1")
    part = example(page(CALLBACKS), "part of a callback")
    metadata = part.pop("metadata")
    assert part == {name: sent[name] for name in part}
    assert set(metadata) <= set(sent["metadata"])


def test_every_field_is_explained(page: OpenPage, ourvidz_eager: Eager) -> None:
    """The tables have every field of the payload and of its metadata."""
    ourvidz_eager.submit(JOB)
    sent = ourvidz_eager.callbacks.of("one")[-1].payload
    explained = names(page(CALLBACKS).rows("field", "meaning"))
    assert explained == set(sent) | set(payload.DEFAULTS) | set(sent["assets"][0])


@pytest.mark.parametrize("job", [CHAT, ENHANCED, WITH_REFERENCE], ids=lambda job: str(job["type"]))
def test_every_field_of_other_jobs_is_explained(
    page: OpenPage, ourvidz_eager: Eager, job: dict[str, Any]
) -> None:
    """Text jobs, enhanced clips and jobs with a reference have fields that a plain image job lacks."""
    ourvidz_eager.submit(job)
    sent = ourvidz_eager.callbacks.of(job["id"])[-1].payload
    assert sent["status"] == "completed", sent["error"]
    pages = page(CALLBACKS)
    common_fields = names(pages.rows("field", "meaning"))
    assert set(sent["metadata"]) - common_fields <= names(pages.rows("metadata"))
    assert set(sent["assets"][0]["metadata"]) <= names(pages.rows("asset metadata"))


def test_the_table_of_delivery_intervals_is_the_retry_schedule(page: OpenPage) -> None:
    """Receivers can rely on the documented intervals."""
    rows = page(CALLBACKS).rows("after delivery")
    for number, ceiling in ((re.match(r"\d+", row[0]), float(row[1])) for row in rows):
        assert number
        assert ceiling == max_backoff_s(int(number[0]), age_s=1e9)
    assert max_backoff_s(len(rows), age_s=1e9) == max_backoff_s(1000, age_s=1e9), (
        "the last row holds for all later"
    )


def test_the_table_of_retried_statuses_is_the_retry_policy(page: OpenPage) -> None:
    """Authors of receivers choose their status codes by this table."""
    again = next(row[0] for row in page(CALLBACKS).rows("your answer") if "again" in row[2])
    assert {int(status) for status in re.findall(r"\b\d{3}\b", again)} == RETRIED_STATUSES
    assert "5xx" in again


def test_the_verification_code_of_the_page_works(page: OpenPage) -> None:
    """It accepts signatures of either secret, and rejects changed bodies and old timestamps."""
    verify: dict[str, Any] = {}
    exec(page(CALLBACKS).blocks("python")[0].text, verify)
    old, new = "whsec_b2xkZXIgc2VjcmV0", "whsec_bmV3ZXIgc2VjcmV0"

    def signed(at: datetime) -> dict[str, str]:
        return signing.signed_headers(
            b'{"job_id":"one"}', event_id="msg_1", at=at, callback_secrets=("s",), webhook_secrets=(new, old)
        )

    body, headers = b'{"job_id":"one"}', signed(datetime.now(UTC))
    assert verify["callback_holds"](body, headers, "s")
    assert all(verify["webhook_holds"](body, headers, secret) for secret in (old, new))
    assert not verify["callback_holds"](body + b" ", headers, "s")
    assert not verify["webhook_holds"](body + b" ", headers, old)
    assert not verify["webhook_holds"](body, signed(datetime(2026, 1, 1, tzinfo=UTC)), old)
