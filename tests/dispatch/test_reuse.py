"""`config.reuse`: a job is answered from an equal one of the same user, at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from ourvidz import dispatch
from ourvidz.errors import InvalidParameters, StorageError
from ourvidz.storage.local import LocalStore
from ourvidz.testing import Eager
from ourvidz.web.main import create_app
from ourvidz.wiring import loading
from ourvidz.workflows import staging

pytestmark = pytest.mark.model

SIZES = {"steps": 2, "width": 64, "height": 64, "seed": 5}


def payload(job_id: str, type_name: str = "sdxl_image_fast", **changes: Any) -> dict[str, Any]:
    """A job with a seed that accepts the result of an earlier one."""
    config = SIZES | {"reuse": True} | changes.pop("config", {})
    if type_name == "video_fast":
        config["frames"] = 5
    return {"id": job_id, "type": type_name, "prompt": "a hill", "user_id": "me", "config": config} | changes


@contextmanager
def generated(system: Eager, family: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Records the jobs that a pipeline generates."""
    models: Any = loading.models(system.control.settings, family)
    pipeline, ids = models._pipelines()[family], []
    generate = pipeline.generate

    def note(job: Any, **options: Any) -> Any:
        ids.append(job.id)
        return generate(job, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "generate", note)
        yield ids


def files_of(system: Eager, job_id: str) -> dict[str, bytes]:
    """The files of a job by name."""
    outcome = system.record(job_id).outcome
    assert outcome is not None
    keys = [key for asset in outcome.assets for key in (asset.key, asset.thumbnail_key) if key]
    assert all(f"/{job_id}/" in key for key in keys)
    return {key.rpartition("/")[2]: system.control.store.get(key) for key in keys}


@pytest.mark.parametrize(("type_name", "family"), [("sdxl_image_fast", "sdxl"), ("video_fast", "wan")])
def test_an_earlier_result_answers_without_generating(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch, type_name: str, family: str
) -> None:
    """With its own callbacks and its own copies of the files, which outlive the earlier job."""
    with generated(ourvidz_eager, family, monkeypatch) as ids:
        ourvidz_eager.submit(payload("one", type_name))
        admission = ourvidz_eager.submit(payload("two", type_name, bucket="video_fast", expected_time=9))
    assert ids == ["one"]
    assert admission.record.status == "completed"
    assert ourvidz_eager.callbacks.statuses("two") == ["processing", "completed"]
    first, second = (ourvidz_eager.callbacks.of(job_id)[-1].payload for job_id in ("one", "two"))
    assert second["metadata"]["reused_from"] == "one"
    assert second["metadata"]["receipt"] == first["metadata"]["receipt"]
    assert (second["metadata"]["generation_time"], second["metadata"].get("gpu_seconds")) == (0, None)
    assert second["assets"][0]["url"].startswith("video_fast/me/two/")
    assert files_of(ourvidz_eager, "one") == files_of(ourvidz_eager, "two")
    dispatch.delete("one")
    assert files_of(ourvidz_eager, "two")


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"seed": 6}},
        {"config": {"reuse": False}},
        {"config": {"steps": 3}},
        {"prompt": "a lake"},
        {"user_id": "you"},
        {"negative_prompt": "fog"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_request_seed_or_user_is_generated(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Only the same work of the same user is reused, and only on request."""
    ourvidz_eager.submit(payload("one"))
    with generated(ourvidz_eager, "sdxl", monkeypatch) as ids:
        ourvidz_eager.submit(payload("two", **changes))
    assert ids == ["two"]
    assert "reused_from" not in ourvidz_eager.callbacks.of("two")[-1].payload["metadata"]


def test_the_earlier_job_need_not_have_asked_for_reuse(ourvidz_eager: Eager) -> None:
    """And a result that was reused can be reused again."""
    ourvidz_eager.submit(payload("one", config={"reuse": False}))
    ourvidz_eager.submit(payload("two"))
    dispatch.delete("one")
    ourvidz_eager.submit(payload("three"))
    sources = [
        ourvidz_eager.callbacks.of(job_id)[-1].payload["metadata"]["reused_from"]
        for job_id in ("two", "three")
    ]
    assert sources == ["one", "two"]


def test_a_deleted_job_or_file_is_not_missed(ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is then generated as any other."""
    ourvidz_eager.submit(payload("one"))
    outcome = ourvidz_eager.record("one").outcome
    assert outcome is not None
    ourvidz_eager.control.store.delete(str(outcome.assets[0].key))
    with generated(ourvidz_eager, "sdxl", monkeypatch) as ids:
        ourvidz_eager.submit(payload("two"))
        dispatch.delete("two")
        ourvidz_eager.submit(payload("three"))
    assert ids == ["two", "three"]


def test_another_job_under_the_id_of_an_earlier_one_is_not_mistaken_for_it(ourvidz_eager: Eager) -> None:
    """Callers use ids again after they deleted a job; its result must not come back as another one's."""
    ourvidz_eager.submit(payload("one"))
    dispatch.delete("one")
    ourvidz_eager.submit(payload("one", prompt="a lake"))
    ourvidz_eager.submit(payload("two"))
    assert "reused_from" not in ourvidz_eager.callbacks.of("two")[-1].payload["metadata"]


def test_the_files_are_copied_by_the_storage(ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip of 30 MB does not pass through the shim."""
    ourvidz_eager.submit(payload("one"))
    copied: list[str] = []
    copy = LocalStore.copy

    def note(store: LocalStore, source: str, key: str) -> None:
        copied.append(source)
        copy(store, source, key)

    monkeypatch.setattr(LocalStore, "copy", note)
    ourvidz_eager.submit(payload("two"))
    assert copied == ["workspace-temp/me/one/0.png", "workspace-temp/me/one/0.thumb.webp"]


def test_a_file_that_is_deleted_meanwhile_queues_the_job(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when the result was found."""
    ourvidz_eager.submit(payload("one"))
    copy = LocalStore.copy

    def copy_late(store: LocalStore, source: str, key: str) -> None:
        store.delete_folder("workspace-temp/me/one")
        copy(store, source, key)

    monkeypatch.setattr(LocalStore, "copy", copy_late)
    with generated(ourvidz_eager, "sdxl", monkeypatch) as ids:
        ourvidz_eager.submit(payload("two"))
    assert ids == ["two"]
    assert ourvidz_eager.callbacks.statuses("two")[-1] == "completed"


def test_a_storage_that_fails_queues_the_job(ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the copies is left, and the job has one terminal callback."""
    ourvidz_eager.submit(payload("one"))
    monkeypatch.setattr(staging, "PUT_BACKOFF_S", 0)
    put, fails = LocalStore.put, [True] * StorageError.attempts

    def failing(store: LocalStore, key: str, data: bytes, *, content_type: str) -> None:
        if fails:
            fails.pop()
            raise StorageError("the disk is full")
        put(store, key, data, content_type=content_type)

    monkeypatch.setattr(LocalStore, "put", failing)
    with generated(ourvidz_eager, "sdxl", monkeypatch) as ids:
        ourvidz_eager.submit(payload("two"))
    assert ids == ["two"]
    assert ourvidz_eager.callbacks.statuses("two")[-1] == "completed"
    assert ourvidz_eager.callbacks.statuses("two").count("completed") == 1
    assert not list(ourvidz_eager.storage.rglob(".attempts"))


def test_a_reference_that_was_not_used_is_not_reused(ourvidz_eager: Eager) -> None:
    """The next try may be able to fetch it."""
    unreachable = {"reference_image_url": "https://gone.invalid/hill.png"}
    for job_id in ("one", "two"):
        ourvidz_eager.submit(payload(job_id, metadata=unreachable))
    metadata = ourvidz_eager.callbacks.of("two")[-1].payload["metadata"]
    assert metadata["reference_fallback"] is True
    assert "reused_from" not in metadata


def test_the_same_id_is_the_same_job_with_and_without_reuse(ourvidz_eager: Eager) -> None:
    """Reuse says how a job may be answered, not what it asks for."""
    ourvidz_eager.submit(payload("one"))
    admission = ourvidz_eager.submit(payload("one", config={"reuse": False}))
    assert not admission.created


def test_a_submission_that_is_answered_is_no_queued_job(
    ourvidz_eager: Eager,
) -> None:
    """Over HTTP the answer is the finished job, not a place in a queue."""
    ourvidz_eager.submit(payload("one"))
    client = TestClient(create_app(ourvidz_eager.control), "http://127.0.0.1:7860", client=("127.0.0.1", 1))
    answer = client.post("/jobs", json=payload("two"))
    assert answer.status_code == 200
    assert answer.json()["status"] == "completed"
    assert answer.json()["result"]["metadata"]["reused_from"] == "one"


def test_reuse_is_true_or_false(ourvidz_eager: Eager) -> None:
    """Anything else is a mistake of the caller."""
    with pytest.raises(InvalidParameters) as refused:
        ourvidz_eager.submit(payload("one", config={"reuse": "maybe"}))
    assert refused.value.field == "config.reuse"


def test_an_unjudged_result_answers_no_job_where_pictures_are_judged(
    ourvidz_eager: Eager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stored before the classifier was configured."""
    with generated(ourvidz_eager, "sdxl", monkeypatch) as ids:
        ourvidz_eager.submit(payload("one"))
        classifier = {"image_classifier": "tests.shape_classifier:refuse_stars"}
        judged = ourvidz_eager.control.settings.model_copy(update=classifier)
        object.__setattr__(ourvidz_eager.control, "settings", judged)
        ourvidz_eager.submit(payload("two"))
    assert ids == ["one", "two"]
