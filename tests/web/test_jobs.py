"""The job routes, on recorded requests and on a real broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from tests.factories import publishing_to

SAMPLES = sorted((Path(__file__).parents[1] / "contract" / "payloads").glob("*.json"))

BROKER = "ourvidz:broker:"
"""What the keys of the broker begin with."""


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_request_gets_its_status(shim, path: Path) -> None:
    """Existing callers keep getting the same responses."""
    sample = json.loads(path.read_text())
    answer = shim.client.post("/jobs", json=sample["payload"])
    assert answer.status_code == sample["expect"]["status"], answer.text
    if answer.status_code != 202:
        problem, expected = answer.json(), sample["expect"]["error"]
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["code"] == expected["code"]
        assert expected["field"] in problem["field"] if expected["field"] else problem["field"] is None


def test_a_submission_returns_queue_position_run_and_seed(shim) -> None:
    """A caller can show the position without another request."""
    shim.submit(id="first")
    answer = shim.client.post("/jobs", json=shim.payload(id="second", config={"seed": 7}))
    assert answer.status_code == 202
    assert answer.headers["location"] == "/jobs/second"
    assert answer.json() == {
        "job_id": "second", "status": "queued", "queue": "sdxl_queue", "position": 1, "run": 1, "seed": 7,
    }  # fmt: skip


def test_submitting_the_same_job_again_returns_its_state(shim) -> None:
    """A caller that lost the first response may repeat the request."""
    seed = shim.submit()["seed"]
    again = shim.client.post("/jobs", json=shim.payload())
    assert again.status_code == 200
    assert again.json() == shim.client.get("/jobs/job-1").json()
    assert shim.ledger.get("job-1").callback_metadata["seed"] == seed
    assert shim.ledger.queue_depth("sdxl_queue") == 1


def test_another_job_under_the_same_id_is_a_conflict(shim) -> None:
    """An id names one job."""
    shim.submit()
    answer = shim.client.post("/jobs", json=shim.payload(prompt="a blue square"))
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")


def test_a_new_job_is_refused_when_its_queue_has_no_worker(open_shim) -> None:
    """503 with `Retry-After`, and no record."""
    shim = open_shim(OURVIDZ_WORKER_GRACE_S=0)
    answer = shim.client.post("/jobs", json=shim.payload())
    assert (answer.status_code, answer.json()["code"]) == (503, "WORKER_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) > 0
    assert shim.ledger.get("job-1") is None


def test_a_new_shim_accepts_jobs_before_workers_have_started(shim) -> None:
    """After a power cut the shim may be up before the workers."""
    assert shim.submit(type="video_fast", id="clip")["queue"] == "wan_queue"


def test_a_completed_job_has_its_result(shim) -> None:
    """A polling caller gets what the callback contains."""
    shim.submit()
    shim.end("job-1", shim.completed())
    job = shim.client.get("/jobs/job-1").json()
    key = job["result"]["assets"][0]["url"]
    assert key.startswith("workspace-temp/")
    assert job["result"]["imageUrl"] == f"http://127.0.0.1:7860/assets/{key}"
    assert job["result"]["metadata"]["job_type"] == "sdxl_image_fast"
    assert job["result"]["metadata"]["generation_time"] == 1.5
    assert {name: job[name] for name in ("status", "progress", "error", "queue_position", "eta_s")} == {
        "status": "completed", "progress": 100, "error": None, "queue_position": None, "eta_s": None,
    }  # fmt: skip
    assert [job["result"][name] for name in ("videoUrl", "text")] == [None, None]


def test_times_are_in_utc_and_in_order(shim) -> None:
    """Callers in other time zones compute durations from them."""
    shim.submit()
    shim.end("job-1", shim.completed())
    stamps = shim.client.get("/jobs/job-1").json()["timestamps"]
    times = [datetime.fromisoformat(stamps[name]) for name in ("created_at", "started_at", "finished_at")]
    assert times == sorted(times)
    assert all(time.utcoffset() == timedelta(0) for time in times)


def test_a_failed_job_has_its_error(shim) -> None:
    """Callers branch on `code` and `retryable`."""
    shim.submit()
    shim.end("job-1", shim.failed())
    job = shim.client.get("/jobs/job-1").json()
    assert (job["status"], job["result"]) == ("failed", None)
    assert job["error"] == {"code": "WORKER_LOST", "message": "gone", "retryable": True}


def test_the_estimate_grows_with_the_jobs_ahead(shim) -> None:
    """The expected time of this type is 30 seconds."""
    for number in range(3):
        shim.submit(id=f"job-{number}")
    states = [shim.client.get(f"/jobs/job-{number}").json() for number in range(3)]
    assert [state["queue_position"] for state in states] == [0, 1, 2]
    assert [state["eta_s"] for state in states] == [30, 60, 90]


def test_the_estimate_of_a_running_job_shrinks_with_its_progress(shim) -> None:
    """Half done, half the expected time is left."""
    shim.submit()
    shim.ledger.step(shim.claim("job-1"), progress=50)
    job = shim.client.get("/jobs/job-1").json()
    assert (job["status"], job["progress"], job["eta_s"]) == ("processing", 50, 15)


def test_the_older_path_returns_the_same_job(shim) -> None:
    """Older callers read `/job/{id}`."""
    shim.submit()
    assert shim.client.get("/job/job-1").json() == shim.client.get("/jobs/job-1").json()


@pytest.mark.parametrize("job_id", ["nobody", "%2e%2e", "a%00b", "%ff", "a" * 200, "ü"])
def test_an_unknown_id_is_not_found(shim, job_id: str) -> None:
    """An id is looked up or refused, never interpreted as a path or pattern."""
    for method, tail in (
        ("GET", ""),
        ("GET", "/events"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("DELETE", ""),
    ):
        answer = shim.client.request(method, f"/jobs/{job_id}{tail}")
        assert answer.status_code in (404, 405), answer.text
        assert answer.json()["success"] is False


def test_the_list_is_newest_first_and_pages_to_its_end(shim) -> None:
    """Pages neither repeat nor skip jobs."""
    for number in range(5):
        shim.submit(id=f"job-{number}")
    listed: list[str] = []
    cursor = ""
    while cursor is not None:
        page = shim.client.get("/jobs", params={"limit": 2, "cursor": cursor}).json()
        listed += [item["job_id"] for item in page["items"]]
        cursor = page["cursor"]
    assert listed == [f"job-{number}" for number in reversed(range(5))]


def test_the_list_is_filtered_by_user_type_and_status(shim) -> None:
    """An alias selects its type."""
    shim.submit(id="one")
    shim.submit(id="two", user_id="other")
    shim.submit(id="clip", type="video_fast")
    shim.end("one", shim.completed("one"))

    def ids(**query: str) -> list[str]:
        return [item["job_id"] for item in shim.client.get("/jobs", params=query).json()["items"]]

    assert ids(user_id="other") == ["two"]
    assert ids(type="wan_video_fast") == ["clip"]
    assert ids(status="completed") == ["one"]


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=x", "limit"), ("status=lost", "status"), ("type=x", "type"),
     ("cursor=%27", "cursor"), ("user_id=..%2F", "user_id")],
)  # fmt: skip
def test_a_wrong_filter_is_named(shim, query: str, field: str) -> None:
    """The caller reads which parameter to correct."""
    answer = shim.client.get(f"/jobs?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_a_cancelled_queued_job_never_runs(shim) -> None:
    """It ends at once and cannot be claimed."""
    shim.submit()
    answer = shim.client.post("/jobs/job-1/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert shim.ledger.claim("job-1", 1, worker_id="w", lease_s=9, token="t") is None
    assert shim.client.post("/jobs/job-1/cancel").status_code == 409


def test_cancelling_a_running_job_sets_its_flag(shim) -> None:
    """The worker reads the flag before its next step; until then the job is processing."""
    shim.submit()
    claim = shim.claim("job-1")
    assert shim.client.post("/jobs/job-1/cancel").json()["status"] == "processing"
    assert shim.ledger.step(claim, progress=1) == "cancel"


def test_a_failed_job_runs_again_under_its_id(shim) -> None:
    """An operator repairs the cause and retries the job."""
    shim.submit()
    assert shim.client.post("/jobs/job-1/retry").status_code == 409
    shim.end("job-1", shim.failed())
    answer = shim.client.post("/jobs/job-1/retry")
    assert (answer.status_code, answer.json()["run"]) == (202, 2)
    assert shim.client.get("/jobs/job-1").json()["status"] == "queued"


def test_deleting_a_job_deletes_its_assets(shim) -> None:
    """Users can have their data deleted."""
    shim.submit()
    outcome = shim.completed()
    assert shim.client.delete("/jobs/job-1").status_code == 409
    shim.store.put(outcome.assets[0].key, b"png", content_type="image/png")
    shim.end("job-1", outcome)
    for event in iter(lambda: shim.ledger.lease_event("job-1", lease_s=9, token="t"), None):
        shim.ledger.mark_delivered(event, status=200)
    assert shim.client.delete("/jobs/job-1").json() == {"job_id": "job-1", "deleted": True}
    assert not shim.store.exists(outcome.assets[0].key)
    assert shim.client.get("/jobs/job-1").status_code == 404


def test_a_caller_can_see_whether_its_callback_was_delivered(shim) -> None:
    """The receiver and the caller may be different programs."""

    def callback() -> dict[str, object]:
        return shim.client.get("/jobs/job-1/callback").json()

    shim.submit()
    assert callback()["state"] is None, "a job that has not ended"
    claim = shim.claim("job-1")
    assert callback()["state"] is None, "the callback of its start is no callback of its end"
    assert shim.ledger.end(claim, outcome=shim.failed(), worker_id="sdxl@host-cpu")
    assert (callback()["state"], callback()["deliveries"]) == ("pending", 0)
    for event in iter(lambda: shim.ledger.lease_event("job-1", lease_s=9, token="t"), None):
        shim.ledger.mark_delivered(event, status=202)
        last = event.event_id
    assert callback() | {"settled_at": None} == {
        "job_id": "job-1", "event_id": last, "state": "delivered", "deliveries": 1, "last_status": 202,
        "last_error": None, "settled_at": None,
    }  # fmt: skip
    assert shim.client.get("/jobs/nothing/callback").status_code == 404


def test_only_the_callback_of_the_current_run_is_shown(shim) -> None:
    """A retried job has not ended, whatever was delivered of its first run; a dead letter says why."""
    shim.submit()
    shim.end("job-1", shim.failed())
    for event in iter(lambda: shim.ledger.lease_event("job-1", lease_s=9, token="t"), None):
        shim.ledger.dead_letter(event, status=404, error="HTTP 404")
    answer = shim.client.get("/jobs/job-1/callback").json()
    assert (answer["state"], answer["last_status"], answer["last_error"]) == ("dead", 404, "HTTP 404")
    assert shim.client.post("/jobs/job-1/retry").status_code == 202
    assert shim.client.get("/jobs/job-1/callback").json()["state"] is None
    shim.ledger.end(shim.ledger.get("job-1"), outcome=shim.failed())
    assert shim.client.get("/jobs/job-1/callback").json()["state"] == "pending"


def test_a_job_can_be_deleted_while_its_receiver_is_down(shim) -> None:
    """On request: the pending callback is cancelled."""
    shim.submit()
    shim.end("job-1", shim.completed())
    assert shim.client.delete("/jobs/job-1").status_code == 409
    assert shim.client.delete("/jobs/job-1?force=true").status_code == 200
    assert shim.ledger.list_events("pending") == []


@pytest.fixture
def broker(redis_url: str) -> Iterator[SimpleNamespace]:
    """Reads the messages and names of the broker's queues."""
    with redis.Redis.from_url(redis_url) as client:
        yield SimpleNamespace(
            messages=lambda queue: [json.loads(raw) for raw in client.lrange(f"{BROKER}{queue}", 0, -1)],
            names=lambda: [name.decode().removeprefix(BROKER) for name in client.keys(f"{BROKER}*_queue*")],
        )


def test_a_submission_publishes_one_message(shim_with_broker, broker) -> None:
    """Each priority has a list of its own; the message carries the id and never the job."""
    shim_with_broker.submit()
    (message,) = broker.messages("sdxl_queue\x06\x166")
    assert message["headers"]["task"] == "ourvidz.sdxl.generate"
    assert message["headers"]["id"] == "job-1"
    assert message["properties"]["priority"] == 6
    assert "red circle" not in json.dumps(message)
    assert shim_with_broker.ledger.get("job-1").publishes == 1


def test_concurrent_submissions_of_one_id_publish_one_message(shim_with_broker, broker) -> None:
    """Edge functions retry while the first request is still in progress."""
    client, payload = shim_with_broker.client, shim_with_broker.payload()
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: client.post("/jobs", json=payload).status_code, range(24)))
    assert sorted(statuses) == [200] * 23 + [202]
    assert len(broker.messages("sdxl_queue\x06\x166")) == 1


def test_a_pushed_job_is_queued_where_the_catalog_says(shim_with_broker, broker) -> None:
    """A caller that names the wrong queue still reaches the right worker."""
    body = [json.dumps(shim_with_broker.payload()), json.dumps(shim_with_broker.payload(id="job-2"))]
    answer = shim_with_broker.client.post("/rpush/wan_queue", json=body)
    assert answer.json() == {"result": 2}
    assert broker.names() == ["sdxl_queue\x06\x166"]
    assert shim_with_broker.client.get("/llen/sdxl_queue").json() == {"result": 2}
    assert shim_with_broker.client.get("/llen/wan_queue").json() == {"result": 0}


def test_a_job_is_recorded_when_the_broker_is_unreachable(shim) -> None:
    """The sweep publishes it later."""
    with publishing_to("redis://127.0.0.1:1/0"):
        assert shim.client.post("/jobs", json=shim.payload()).status_code == 202
    assert shim.ledger.get("job-1").published_at is None
