"""Payloads have the documented fields for every kind of event."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ourvidz.callbacks.payload import build, encode
from ourvidz.errors import Cancelled, OutOfMemory
from ourvidz.jobs.job import ChatJob, ImageJob, Message, VideoJob
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.records.record import OutboxEvent

MakeEvent = Callable[..., OutboxEvent]

TOP = [
    "job_id",
    "worker_id",
    "status",
    "sequence",
    "assets",
    "metadata",
    "enhancedPrompt",
    "error_message",
    "error",
]
METADATA = [
    "job_type",
    "content_type",
    "seed",
    "num_images",
    "batch_size",
    "generation_time",
    "processing_time",
    "queue_time",
    "expected_time",
    "performance_ratio",
    "vram_used",
    "vram_total",
    "vram_utilization",
    "vram_used_gb",
    "vram_total_gb",
    "frame_num",
    "wan_task",
    "reference_mode",
    "i2i_mode",
    "exact_copy_mode",
    "size_capped",
    "enhancement_source",
    "unrestricted_mode",
    "system_prompt_used",
    "nsfw_optimization",
    "compel_enabled",
    "compel_weights",
    "compel_success",
    "enhancement_strategy",
    "original_prompt",
    "final_prompt_type",
    "worker_version",
]

MEASURED = {
    "generation_time": 15.5,
    "vram_used": 8192,
    "vram_total": 49140,
    "vram_utilization": 0.17,
    "compel_success": True,
    "enhancement_strategy": "compel",
    "final_prompt_type": "conditioning_tensor",
}
IMAGE = Asset(
    type="image",
    key="workspace-temp/user-1/job-1/0.png",
    thumbnail_key="workspace-temp/user-1/job-1/0.thumb.webp",
    metadata={"width": 64, "height": 64, "seed": 12345, "asset_index": 0, "denoise_strength": 0.15},
)
CLIP = Asset(type="video", key="video_fast/user-1/job-1/0.mp4", metadata={"fps": 16, "frames": 83})


def completed(**fields: Any) -> Outcome:
    return Outcome(**{"status": "completed", "assets": (IMAGE,), "metadata": MEASURED, **fields})


OUTCOMES = {
    "processing": None,
    "completed": completed(),
    "failed": Outcome.failure(OutOfMemory("not enough GPU memory"), vram_used=8192),
    "cancelled": Outcome.failure(Cancelled("the job was cancelled")),
}


@pytest.mark.parametrize("assets_as", ["objects", "urls"])
@pytest.mark.parametrize("kind", OUTCOMES)
def test_every_payload_has_every_field(make_event: MakeEvent, kind: str, assets_as: Any) -> None:
    """A receiver can read any documented field without looking at the kind of event first."""
    payload = build(make_event(kind=kind, outcome=OUTCOMES[kind]), worker_version="1", assets_as=assets_as)
    assert list(payload) == TOP
    assert set(METADATA) <= set(payload["metadata"])
    assert json.loads(encode(payload)) == payload


def test_a_completed_job_has_its_times_sizes_and_settings(make_event: MakeEvent) -> None:
    """The documented example, value by value."""
    payload = build(make_event(kind="completed", outcome=completed()), worker_version="0.1.0")
    assert payload["status"] == "completed"
    assert payload["worker_id"] == "sdxl@host-gpu0"
    assert payload["sequence"] == 2
    assert payload["error"] is None
    assert payload["error_message"] is None
    expected = {
        "job_type": "sdxl_image_high",
        "content_type": "image",
        "seed": 12345,
        "num_images": 1,
        "batch_size": 1,
        "generation_time": 15.5,
        "processing_time": 16.1,
        "queue_time": 0.01,
        "expected_time": 42.0,
        "performance_ratio": 0.37,
        "vram_used": 8192,
        "vram_total": 49140,
        "vram_used_gb": 8.0,
        "vram_total_gb": 47.99,
        "reference_mode": "none",
        "size_capped": False,
        "compel_success": True,
        "original_prompt": "a lighthouse on a hill",
        "worker_version": "0.1.0",
    }
    assert {name: payload["metadata"][name] for name in expected} == expected
    assert "error_type" not in payload["metadata"]
    assert "attempt" not in payload["metadata"]


def test_an_asset_has_its_storage_paths(make_event: MakeEvent) -> None:
    """Callers derive signed URLs from the paths."""
    payload = build(make_event(kind="completed", outcome=completed()), worker_version="1")
    assert payload["assets"] == [
        {
            "type": "image",
            "url": "workspace-temp/user-1/job-1/0.png",
            "thumbnail_url": "workspace-temp/user-1/job-1/0.thumb.webp",
            "metadata": IMAGE.metadata,
        }
    ]


def test_the_url_form_is_a_plain_list(make_event: MakeEvent) -> None:
    """Older receivers read strings."""
    event = make_event(kind="completed", outcome=completed(assets=(IMAGE, CLIP)))
    assert build(event, worker_version="1", assets_as="urls")["assets"] == [IMAGE.key, CLIP.key]


@pytest.mark.parametrize("assets_as", ["objects", "urls"])
def test_a_text_is_in_either_form_of_the_payload(make_event: MakeEvent, assets_as: Any) -> None:
    """A text has no URL; in the form with URLs the metadata holds it."""
    job = ChatJob(
        id="job-1",
        type="chat_conversation",
        expected_time=15,
        messages=(Message(role="user", content="hello"),),
        max_tokens=16,
        seed=1,
    )
    outcome = Outcome(status="completed", assets=(Asset(type="text", metadata={"text": "good day"}),))
    event = make_event(kind="completed", outcome=outcome, callback_metadata=job.callback_metadata())
    payload = build(event, worker_version="1", assets_as=assets_as)
    if assets_as == "objects":
        assert payload["assets"] == [
            {"type": "text", "url": None, "thumbnail_url": None, "metadata": {"text": "good day"}}
        ]
        assert "text" not in payload["metadata"]
    else:
        assert payload["assets"] == []
        assert payload["metadata"]["text"] == "good day"
    assert payload["metadata"]["content_type"] == "text"


def test_an_enhanced_prompt_is_in_the_payload(make_event: MakeEvent) -> None:
    """Callers show it to their users."""
    outcome = completed(enhanced_prompt="a tall lighthouse, evening light")
    payload = build(make_event(kind="completed", outcome=outcome), worker_version="1")
    assert payload["enhancedPrompt"] == "a tall lighthouse, evening light"


def test_a_failed_job_has_its_error_and_what_is_known_of_the_job(make_event: MakeEvent) -> None:
    """Callers file the error under the job's type and settings."""
    event = make_event(kind="failed", outcome=OUTCOMES["failed"])
    payload = build(event, worker_version="1")
    assert payload["status"] == "failed"
    assert payload["assets"] == []
    assert payload["error_message"] == "not enough GPU memory"
    assert payload["error"] == {"code": "OOM_ERROR", "message": "not enough GPU memory", "retryable": True}
    assert payload["metadata"]["error_type"] == "OOM_ERROR"
    assert payload["metadata"]["error_timestamp"] == "2027-01-15T08:00:16.110Z"
    assert payload["metadata"]["job_type"] == "sdxl_image_high"
    assert payload["metadata"]["vram_used"] == 8192


def test_a_cancelled_job_has_the_status_failed(make_event: MakeEvent) -> None:
    """Receivers in the field know three statuses; the code distinguishes the fourth."""
    event = make_event(kind="cancelled", outcome=OUTCOMES["cancelled"], claimed_at=None, worker_id=None)
    payload = build(event, worker_version="1")
    assert payload["status"] == "failed"
    assert payload["error"]["code"] == "CANCELLED"
    assert payload["worker_id"] is None
    assert payload["metadata"]["queue_time"] is None
    assert payload["metadata"]["processing_time"] is None


@pytest.mark.parametrize(("kind", "code"), [("failed", "INTERNAL_ERROR"), ("cancelled", "CANCELLED")])
def test_a_failure_without_an_error_still_has_a_code(make_event: MakeEvent, kind: str, code: str) -> None:
    """Callers branch on the code, so it is never missing."""
    payload = build(make_event(kind=kind, outcome=Outcome(status=kind)), worker_version="1")  # type: ignore[arg-type]
    assert payload["error"]["code"] == code


@pytest.mark.parametrize(("attempt", "expected"), [(1, None), (2, 2), (3, 3)])
def test_processing_names_the_attempt_from_the_second_on(
    make_event: MakeEvent, attempt: int, expected: int | None
) -> None:
    """Callers can distinguish a retry from the first attempt."""
    payload = build(make_event(attempt=attempt), worker_version="1")
    assert payload["metadata"].get("attempt") == expected
    assert payload["status"] == "processing"
    assert payload["metadata"]["processing_time"] is None
    assert payload["metadata"]["queue_time"] == 0.01


def test_progress_is_in_the_metadata(make_event: MakeEvent) -> None:
    """A progress callback is a `processing` callback with a percentage."""
    payload = build(make_event(metadata={"progress": 40.0}), worker_version="1")
    assert payload["metadata"]["progress"] == 40.0


def test_measured_values_replace_those_of_the_job(make_event: MakeEvent) -> None:
    """A trimmed clip reports its delivered length, not the requested one."""
    job = VideoJob(
        id="job-1",
        type="video_fast",
        expected_time=180,
        prompt="waves",
        steps=25,
        guidance_scale=6.5,
        width=480,
        height=832,
        frames=83,
        seed=1,
    )
    outcome = Outcome(status="completed", assets=(CLIP,), metadata={"frame_num": 82})
    payload = build(
        make_event(kind="completed", outcome=outcome, callback_metadata=job.callback_metadata()),
        worker_version="1",
    )
    assert payload["metadata"]["frame_num"] == 82
    assert payload["metadata"]["wan_task"] == "t2v-1.3B"


def test_carried_fields_are_returned(make_event: MakeEvent, make_job: Callable[..., ImageJob]) -> None:
    """Callers find their own records by the ids they sent."""
    metadata = make_job(carried={"image_id": "row-7"}).callback_metadata()
    assert (
        build(make_event(callback_metadata=metadata), worker_version="1")["metadata"]["image_id"] == "row-7"
    )


def test_a_clock_set_back_gives_no_negative_times(make_event: MakeEvent) -> None:
    """Dashboards reject negative durations."""
    event = make_event(kind="completed", outcome=completed(), claimed_at=1_800_000_020.0)
    assert build(event, worker_version="1")["metadata"]["processing_time"] == 0.0


def test_building_does_not_change_the_event(make_event: MakeEvent) -> None:
    """Each delivery builds the payload again, and its bytes must not change."""
    event = make_event(kind="completed", outcome=completed())
    first = encode(build(event, worker_version="1"))
    build(event, worker_version="1")["assets"][0]["metadata"]["width"] = 0
    assert encode(build(event, worker_version="1")) == first


def test_the_bytes_are_compact_utf8() -> None:
    """These bytes are signed and sent; prompts in any script stay readable."""
    assert encode({"a": ["é", 1]}) == '{"a":["é",1]}'.encode()
    assert encode({"a": "\ud800"}) == b'{"a":"?"}'


def test_an_expectation_of_next_to_nothing_gives_no_ratio(make_event: Any) -> None:
    """A caller may expect any positive time; JSON has no infinity, and the callback must be sent."""
    outcome = Outcome(status="completed", metadata={"generation_time": 3.2})
    event = make_event(kind="completed", outcome=outcome, callback_metadata={"expected_time": 1e-320})
    document = build(event, worker_version="1")
    assert document["metadata"]["performance_ratio"] is None
    encode(document)
