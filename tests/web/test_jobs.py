"""The job routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

SAMPLES = sorted((Path(__file__).parents[1] / "contract" / "payloads").glob("*.json"))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_request_gets_its_status(shim, path: Path) -> None:
    """Callers in the field keep sending what they send today, and hear the same."""
    sample = json.loads(path.read_text())
    answer = shim.client.post("/jobs", json=sample["payload"])
    assert answer.status_code == sample["expect"]["status"], answer.text
    if answer.status_code != 202:
        problem, expected = answer.json(), sample["expect"]["error"]
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["code"] == expected["code"]
        assert expected["field"] in problem["field"] if expected["field"] else problem["field"] is None


def test_a_submission_says_where_it_waits(shim) -> None:
    """A caller shows its user a place in the line without asking again."""
    shim.submit(id="first")
    answer = shim.client.post("/jobs", json=shim.payload(id="second", config={"seed": 7}))
    assert answer.status_code == 202
    assert answer.headers["location"] == "/jobs/second"
    assert answer.json() == {
        "job_id": "second", "status": "queued", "queue": "sdxl_queue", "position": 1, "run": 1, "seed": 7,
    }  # fmt: skip


def test_the_same_job_again_is_answered_with_its_state(shim) -> None:
    """A caller that lost the first answer may repeat itself."""
    seed = shim.submit()["seed"]
    again = shim.client.post("/jobs", json=shim.payload())
    assert again.status_code == 200
    assert again.json() == shim.client.get("/jobs/job-1").json()
    assert shim.ledger.get("job-1").facts["seed"] == seed
    assert shim.ledger.depth("sdxl_queue") == 1


def test_another_job_under_the_same_id_is_a_conflict(shim) -> None:
    """An id names one job for ever."""
    shim.submit()
    answer = shim.client.post("/jobs", json=shim.payload(prompt="a blue square"))
    assert (answer.status_code, answer.json()["code"]) == (409, "CONFLICT")


def test_a_new_job_is_refused_when_nobody_would_run_it(open_shim) -> None:
    """Better told at once than to wait for nobody; what stands already is still shown."""
    shim = open_shim(OURVIDZ_WORKER_GRACE_S=0)
    answer = shim.client.post("/jobs", json=shim.payload())
    assert (answer.status_code, answer.json()["code"]) == (503, "WORKER_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) > 0
    assert shim.ledger.get("job-1") is None


def test_a_young_shim_accepts_jobs_that_nobody_serves_yet(shim) -> None:
    """Everything restarts together after a power cut; jobs are not lost to that."""
    assert shim.submit(type="video_fast", id="clip")["queue"] == "wan_queue"


def test_a_completed_job_shows_what_it_made(shim) -> None:
    """The polling caller gets what the callback said."""
    shim.submit()
    shim.end("job-1", shim.completed())
    found = shim.client.get("/jobs/job-1").json()
    key = found["result"]["assets"][0]["url"]
    assert key.startswith("workspace-temp/")
    assert found["result"]["imageUrl"] == f"http://127.0.0.1:7860/assets/{key}"
    assert found["result"]["metadata"]["job_type"] == "sdxl_image_fast"
    assert found["result"]["metadata"]["generation_time"] == 1.5
    assert {name: found[name] for name in ("status", "progress", "error", "queue_position", "eta_s")} == {
        "status": "completed", "progress": 100, "error": None, "queue_position": None, "eta_s": None,
    }  # fmt: skip
    assert [found["result"][name] for name in ("videoUrl", "text")] == [None, None]


def test_times_are_in_utc_and_in_order(shim) -> None:
    """Callers in other time zones subtract them."""
    shim.submit()
    shim.end("job-1", shim.completed())
    stamps = shim.client.get("/jobs/job-1").json()["timestamps"]
    times = [datetime.fromisoformat(stamps[name]) for name in ("created_at", "started_at", "finished_at")]
    assert times == sorted(times)
    assert all(time.utcoffset() == timedelta(0) for time in times)


def test_a_failed_job_shows_its_error(shim) -> None:
    """A caller branches on the code and on whether trying again helps."""
    shim.submit()
    shim.end("job-1", shim.failed())
    found = shim.client.get("/jobs/job-1").json()
    assert (found["status"], found["result"]) == ("failed", None)
    assert found["error"] == {"code": "WORKER_LOST", "message": "gone", "retryable": True}


def test_the_estimate_grows_with_the_jobs_ahead(shim) -> None:
    """The catalog expects 30 seconds for this type."""
    for number in range(3):
        shim.submit(id=f"job-{number}")
    states = [shim.client.get(f"/jobs/job-{number}").json() for number in range(3)]
    assert [state["queue_position"] for state in states] == [0, 1, 2]
    assert [state["eta_s"] for state in states] == [30, 60, 90]


def test_the_estimate_of_a_running_job_shrinks_with_its_progress(shim) -> None:
    """What is done needs no more time."""
    shim.submit()
    shim.ledger.step(shim.claim("job-1"), progress=50)
    found = shim.client.get("/jobs/job-1").json()
    assert (found["status"], found["progress"], found["eta_s"]) == ("processing", 50, 15)


def test_the_old_path_shows_the_same_job(shim) -> None:
    """Older callers ask /job/{id}."""
    shim.submit()
    assert shim.client.get("/job/job-1").json() == shim.client.get("/jobs/job-1").json()


@pytest.mark.parametrize("job_id", ["nobody", "%2e%2e", "a%00b", "%ff", "a" * 200, "ü"])
def test_an_unknown_id_is_not_found(shim, job_id: str) -> None:
    """Whatever is written there is looked up or refused, never interpreted."""
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
    """A page in the middle of a busy hour neither repeats nor skips."""
    for number in range(5):
        shim.submit(id=f"job-{number}")
    found: list[str] = []
    cursor = ""
    while cursor is not None:
        page = shim.client.get("/jobs", params={"limit": 2, "cursor": cursor}).json()
        found += [item["job_id"] for item in page["items"]]
        cursor = page["cursor"]
    assert found == [f"job-{number}" for number in reversed(range(5))]


def test_the_list_filters(shim) -> None:
    """An alias names the same type."""
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
    """The caller reads which parameter to mend."""
    answer = shim.client.get(f"/jobs?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_a_cancelled_queued_job_never_runs(shim) -> None:
    """It is over at once, and nobody can claim it."""
    shim.submit()
    answer = shim.client.post("/jobs/job-1/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert shim.ledger.claim("job-1", 1, worker_id="w", lease_s=9, token="t") is None
    assert shim.client.post("/jobs/job-1/cancel").status_code == 409


def test_cancelling_a_running_job_raises_its_flag(shim) -> None:
    """It stops before its next step; until then it is still processing."""
    shim.submit()
    claim = shim.claim("job-1")
    assert shim.client.post("/jobs/job-1/cancel").json()["status"] == "processing"
    assert shim.ledger.step(claim, progress=1) == "cancel"


def test_a_failed_job_runs_again_under_its_id(shim) -> None:
    """An operator repairs the cause and lets it run once more."""
    shim.submit()
    assert shim.client.post("/jobs/job-1/retry").status_code == 409
    shim.end("job-1", shim.failed())
    answer = shim.client.post("/jobs/job-1/retry")
    assert (answer.status_code, answer.json()["run"]) == (202, 2)
    assert shim.client.get("/jobs/job-1").json()["status"] == "queued"


def test_a_deleted_job_takes_its_assets_along(shim) -> None:
    """Users ask to be forgotten."""
    shim.submit()
    outcome = shim.completed()
    assert shim.client.delete("/jobs/job-1").status_code == 409
    shim.store.put(outcome.assets[0].key, b"png", content_type="image/png")
    shim.end("job-1", outcome)
    for event in iter(lambda: shim.ledger.take("job-1", lease_s=9, token="t"), None):
        shim.ledger.delivered(event, status=200)
    assert shim.client.delete("/jobs/job-1").json() == {"job_id": "job-1", "deleted": True}
    assert not shim.store.exists(outcome.assets[0].key)
    assert shim.client.get("/jobs/job-1").status_code == 404


@pytest.fixture
def broker(redis_url: str) -> Iterator[SimpleNamespace]:
    """What really lies in the broker's queues."""
    with redis.Redis.from_url(redis_url) as client:
        yield SimpleNamespace(
            messages=lambda queue: [json.loads(raw) for raw in client.lrange(queue, 0, -1)],
            names=lambda: [name.decode() for name in client.keys("*_queue*") if b":" not in name],
        )


def test_one_message_of_an_ordinary_job_lies_in_the_broker(real_shim, broker) -> None:
    """Priority 6 has a list of its own; the message carries the id and never the job."""
    real_shim.submit()
    (message,) = broker.messages("sdxl_queue\x06\x166")
    assert message["headers"]["task"] == "ourvidz.sdxl.generate"
    assert message["headers"]["id"] == "job-1"
    assert message["properties"]["priority"] == 6
    assert "red circle" not in json.dumps(message)
    assert real_shim.ledger.get("job-1").publishes == 1


def test_concurrent_submissions_of_one_id_publish_one_message(real_shim, broker) -> None:
    """Edge functions retry while the first try is still under way."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: real_shim.client.post("/jobs", json=real_shim.payload()).status_code, range(24)
            )
        )
    assert sorted(answers) == [200] * 23 + [202]
    assert len(broker.messages("sdxl_queue\x06\x166")) == 1


def test_a_pushed_job_waits_in_the_catalogs_queue(real_shim, broker) -> None:
    """A caller that names the wrong list still reaches the right worker."""
    body = [json.dumps(real_shim.payload()), json.dumps(real_shim.payload(id="job-2"))]
    answer = real_shim.client.post("/rpush/wan_queue", json=body)
    assert answer.json() == {"result": 2}
    assert broker.names() == ["sdxl_queue\x06\x166"]
    assert real_shim.client.get("/llen/sdxl_queue").json() == {"result": 2}
    assert real_shim.client.get("/llen/wan_queue").json() == {"result": 0}


def test_a_job_is_kept_when_the_broker_is_away(shim, publish_to) -> None:
    """The record is the truth: the sweep publishes later."""
    with publish_to("redis://127.0.0.1:1/0"):
        assert shim.client.post("/jobs", json=shim.payload()).status_code == 202
    assert shim.ledger.get("job-1").published_at is None
