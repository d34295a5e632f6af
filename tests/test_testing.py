"""The pytest fixtures for other projects: jobs run in this process and their callbacks are recorded."""

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


def test_submit_returns_after_the_job_has_run(ourvidz_eager: Eager) -> None:
    """Tests need neither a worker nor waiting."""
    ourvidz_eager.submit(JOB)
    record = ourvidz_eager.record("one")
    assert (record.status, record.progress, record.attempt) == ("completed", 100, 1)
    assert (ourvidz_eager.storage / "workspace-temp/me/one/0.png").is_file()
    assert (ourvidz_eager.storage / "workspace-temp/me/one/0.thumb.webp").is_file()


def test_callbacks_are_signed_and_complete(ourvidz_eager: Eager) -> None:
    """Payload, headers and order are those of a worker."""
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


def test_delay_submits_a_payload(ourvidz_eager: Eager) -> None:
    """Python clients on the same broker call `delay` instead of the HTTP API."""
    result = generate.delay(JOB | {"id": "two"})
    assert result.id == "two"
    assert ourvidz_eager.callbacks.statuses("two") == ["processing", "completed"]


def test_an_invalid_payload_leaves_no_record_and_no_callback(ourvidz_eager: Eager) -> None:
    """`delay` raises the error, with the field of the payload."""
    with pytest.raises(InvalidParameters) as refused:
        generate.delay(JOB | {"config": {"steps": 0}})
    assert refused.value.field == "config.steps"
    assert ourvidz_eager.control.ledger.get("one") is None
    assert ourvidz_eager.callbacks.received == []


def test_the_safety_gate_checks_payloads_of_delay(
    tmp_path: Path, ourvidz_callbacks: CallbackRecorder
) -> None:
    """Submissions that do not use the shim are checked as well."""
    with eager(tmp_path, ourvidz_callbacks) as system:
        object.__setattr__(system.control, "gate", Gate(Terms(minor=("blorple",), sexual=("quuxish",))))
        with pytest.raises(PolicyViolation):
            generate.delay(JOB | {"prompt": "a blorple, quuxish"})
        assert system.control.ledger.get("one") is None


def test_a_missing_reference_is_reported_as_a_fallback(ourvidz_eager: Eager) -> None:
    """The metadata say that the reference image was not used."""
    ourvidz_eager.submit(JOB | {"metadata": {"reference_image_url": REFERENCE}})
    metadata = ourvidz_eager.callbacks.of("one")[-1].payload["metadata"]
    assert metadata["reference_fallback"] is True
    assert metadata["reference_error"] == "REFERENCE_FRAME_ERROR"


def test_settings_are_passed_as_variables(tmp_path: Path, ourvidz_callbacks: CallbackRecorder) -> None:
    """`eager` takes settings by the names of their environment variables."""
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
def test_every_job_type_runs_in_eager_mode(ourvidz_eager: Eager, type_name: str, content_type: str) -> None:
    """In eager mode this process acts as the workers of all families."""
    config = {"frames": 5, "steps": 2} if content_type == "video" else {"steps": 2, "max_tokens": 20}
    ourvidz_eager.submit(
        {"id": "any", "type": type_name, "prompt": "a comet", "user_id": "me", "config": config}
    )
    assert ourvidz_eager.callbacks.statuses("any") == ["processing", "completed"]
    last = ourvidz_eager.callbacks.of("any")[-1].payload
    assert last["metadata"]["content_type"] == content_type
    assert [asset["type"] for asset in last["assets"]] == [content_type]


def test_worker_ids_have_the_format_of_production(ourvidz_eager: Eager) -> None:
    """Receivers that parse worker ids can be tested."""
    ourvidz_eager.submit(JOB)
    assert ourvidz_eager.callbacks.of("one")[0].payload["worker_id"].startswith("eager@")


def test_a_storage_directory_of_the_environment_is_left_alone(
    tmp_path: Path, ourvidz_callbacks: CallbackRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that serves production, tests must not write among its assets."""
    monkeypatch.setenv("OURVIDZ_STORAGE_DIR", str(tmp_path / "production"))
    with eager(tmp_path / "test", ourvidz_callbacks) as system:
        assert system.storage == tmp_path / "test" / "assets"
        system.control.store.put("a/b.txt", b"x", content_type="text/plain")
    assert not (tmp_path / "production").exists()


def test_the_worker_id_follows_the_settings(tmp_path: Path, ourvidz_callbacks: CallbackRecorder) -> None:
    """The GPU is part of the id, also after a job with other settings in the same process."""
    for gpu in ("3", "5"):
        with eager(tmp_path, ourvidz_callbacks, OURVIDZ_GPU=gpu) as system:
            system.submit({"id": gpu, "type": "admin_utilities"})
            assert system.callbacks.of(gpu)[0].payload["worker_id"].endswith(f"-gpu{gpu}")


def test_a_retry_reports_its_run_and_attempt(ourvidz_eager: Eager) -> None:
    """The receiver can tell the second `processing` callback from that of the first run."""
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
