"""The fixtures that other projects test with: complete jobs in this process, seen by their callbacks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis

from ourvidz import dispatch, testing
from ourvidz.errors import InvalidParameters, PolicyViolation, SettingsError
from ourvidz.safety.gate import Gate, Terms
from ourvidz.tasks.sdxl import generate
from ourvidz.testing import CallbackRecorder, Eager, eager

REFERENCE = "reference_images/me/gone.png"
JOB = {
    "id": "one",
    "type": "sdxl_image_fast",
    "prompt": "a red circle",
    "user_id": "me",
    "config": {"steps": 2, "seed": 7},
}


def test_a_submitted_job_has_run_when_submit_returns(ourvidz_eager: Eager) -> None:
    """A user's test needs no waiting and no worker."""
    ourvidz_eager.submit(JOB)
    record = ourvidz_eager.record("one")
    assert (record.status, record.progress, record.attempt) == ("completed", 100, 1)
    assert (ourvidz_eager.storage / "workspace-temp/me/one/0.png").is_file()
    assert (ourvidz_eager.storage / "workspace-temp/me/one/0.thumb.webp").is_file()


def test_its_callbacks_are_signed_and_complete(ourvidz_eager: Eager) -> None:
    """The same payload, headers and order as from a worker."""
    ourvidz_eager.submit(JOB)
    processing, completed = ourvidz_eager.callbacks.of("one")
    assert [processing.payload["status"], completed.payload["status"]] == ["processing", "completed"]
    assert [processing.payload["sequence"], completed.payload["sequence"]] == [1, 2]
    assert processing.verified
    assert completed.verified
    assert processing.event_id != completed.event_id
    metadata = completed.payload["metadata"]
    assert metadata["seed"] == 7
    assert metadata["generation_time"] > 0
    assert completed.payload["assets"][0]["url"] == "workspace-temp/me/one/0.png"


def test_the_task_itself_is_a_door(ourvidz_eager: Eager) -> None:
    """A Python client on the same broker calls `delay` with a payload."""
    result = generate.delay(JOB | {"id": "two"})
    assert result.id == "two"
    assert ourvidz_eager.callbacks.statuses("two") == ["processing", "completed"]


def test_a_refused_payload_changes_nothing(ourvidz_eager: Eager) -> None:
    """Neither a record nor a callback tells of it."""
    with pytest.raises(InvalidParameters) as refused:
        generate.delay(JOB | {"config": {"steps": 0}})
    assert refused.value.field == "config.steps"
    assert ourvidz_eager.control.ledger.get("one") is None
    assert ourvidz_eager.callbacks.received == []


def test_the_gate_stands_at_the_door_of_the_task(tmp_path: Path, ourvidz_callbacks: CallbackRecorder) -> None:
    """Whoever comes past the shim meets it too."""
    with eager(tmp_path, ourvidz_callbacks) as system:
        object.__setattr__(system.control, "gate", Gate(Terms(minor=("blorple",), sexual=("quuxish",))))
        with pytest.raises(PolicyViolation):
            generate.delay(JOB | {"prompt": "a blorple, quuxish"})
        assert system.control.ledger.get("one") is None


def test_a_reference_falls_back_to_text_and_says_so(ourvidz_eager: Eager) -> None:
    """A caller must be able to tell that the reference was not used."""
    ourvidz_eager.submit(JOB | {"metadata": {"reference_image_url": REFERENCE}})
    metadata = ourvidz_eager.callbacks.of("one")[-1].payload["metadata"]
    assert metadata["reference_fallback"] is True
    assert metadata["reference_error"] == "REFERENCE_FRAME_ERROR"


def test_settings_can_be_given_by_variable(tmp_path: Path, ourvidz_callbacks: CallbackRecorder) -> None:
    """The July form of assets, as one caller in the field wants it."""
    with eager(tmp_path, ourvidz_callbacks, OURVIDZ_CALLBACK_ASSETS="urls") as system:
        system.submit(JOB)
        assert system.callbacks.of("one")[-1].payload["assets"] == ["workspace-temp/me/one/0.png"]


def test_a_misspelt_setting_is_refused(tmp_path: Path, ourvidz_callbacks: CallbackRecorder) -> None:
    """A test that passes because its setting had no effect proves nothing."""
    for name in ("OURVIDZ_CALBACK_ASSETS", "callback_assets"):
        with (
            pytest.raises(SettingsError, match=f"^{name}: "),
            eager(tmp_path, ourvidz_callbacks, **{name: "urls"}),
        ):
            pass


@pytest.mark.parametrize(
    ("type_name", "content_type"),
    [
        ("image_fast", "image"),
        ("video_fast", "video"),
        ("image7b_fast_enhanced", "image"),
        ("chat_conversation", "text"),
        ("chat_enhance", "text"),
        ("admin_utilities", "json"),
    ],
)
def test_every_kind_of_job_runs_inside_submit(
    ourvidz_eager: Eager, type_name: str, content_type: str
) -> None:
    """In eager mode this process is every worker there is, one for each family."""
    config = {"frames": 5, "steps": 2} if content_type == "video" else {"steps": 2, "max_tokens": 20}
    ourvidz_eager.submit(
        {"id": "any", "type": type_name, "prompt": "a comet", "user_id": "me", "config": config}
    )
    assert ourvidz_eager.callbacks.statuses("any") == ["processing", "completed"]
    last = ourvidz_eager.callbacks.of("any")[-1].payload
    assert last["metadata"]["content_type"] == content_type
    assert [asset["type"] for asset in last["assets"]] == [content_type]


def test_worker_ids_read_as_in_production(ourvidz_eager: Eager) -> None:
    """A receiver that parses them is tested with real ones."""
    ourvidz_eager.submit(JOB)
    assert ourvidz_eager.callbacks.of("one")[0].payload["worker_id"].startswith("eager@")


def test_the_worker_id_follows_the_settings(tmp_path: Path, ourvidz_callbacks: CallbackRecorder) -> None:
    """The GPU is part of the id, in the order in which jobs happen to run too."""
    for gpu in ("3", "5"):
        with eager(tmp_path, ourvidz_callbacks, OURVIDZ_GPU=gpu) as system:
            system.submit({"id": gpu, "type": "admin_utilities"})
            assert system.callbacks.of(gpu)[0].payload["worker_id"].endswith(f"-gpu{gpu}")


def test_an_operators_retry_says_which_run_and_attempt_it_is(ourvidz_eager: Eager) -> None:
    """The receiver sees `processing` again for a job it knows as failed."""
    ourvidz_eager.submit(
        JOB | {"prompt": "", "metadata": {"exact_copy_mode": True, "reference_image_url": REFERENCE}}
    )
    assert ourvidz_eager.record("one").status == "failed"
    dispatch.retry("one")
    again = [
        one.payload for one in ourvidz_eager.callbacks.of("one") if one.payload["status"] == "processing"
    ][-1]
    assert (again["metadata"]["run"], again["metadata"]["attempt"]) == (2, 1)


def test_keys_of_a_killed_session_are_deleted_by_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test process that is killed deletes nothing, and most of its keys never expire on a shared server."""
    day_s = testing.ABANDONED_AFTER_S
    abandoned = f"{testing.PREFIX}{time.time() - day_s - 60:.0f}:aa:index:all"
    running, foreign = f"{testing.PREFIX}{time.time():.0f}:bb:index:all", f"{testing.PREFIX}cc"
    with redis.Redis.from_url(testing.redis_url()) as client:
        client.mset({abandoned: "", running: "", foreign: ""})
        monkeypatch.setattr(testing, "_abandoned_keys_deleted", False)
        with testing.key_prefix() as prefix:
            client.set(f"{prefix}order", 1)
            assert [client.exists(name) for name in (abandoned, running, foreign)] == [0, 1, 1]
        assert client.keys(f"{prefix}*") == []
        client.unlink(running, foreign)
