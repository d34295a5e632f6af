"""Jobs that a newer release has recorded, in a shim of this release: it says so, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tests.web.conftest import USER, Shim


@pytest.fixture
def newer_shim(shim_with_broker: Shim, redis_url: str) -> Shim:
    """A shim with an ended job `job-1` whose record has a version of a later release."""
    shim_with_broker.submit()
    shim_with_broker.end("job-1", shim_with_broker.failed())
    with redis.Redis.from_url(redis_url) as client:
        client.hset("ourvidz:job:job-1", "v", 99)
    return shim_with_broker


REQUESTS: dict[str, tuple[str, str, Any]] = {
    "read": ("GET", "/jobs/job-1", None),
    "read, by the old name": ("GET", "/job/job-1", None),
    "follow": ("GET", "/jobs/job-1/events", None),
    "resume following": ("GET", "/jobs/job-1/events", None),
    "cancel": ("POST", "/jobs/job-1/cancel", None),
    "retry": ("POST", "/jobs/job-1/retry", None),
    "delete": ("DELETE", "/jobs/job-1", None),
    "submit again": ("POST", "/jobs", Shim.payload()),
    "push onto a list": ("POST", "/rpush/sdxl_queue", [Shim.payload()]),
    "push several": ("POST", "/rpush/sdxl_queue", [Shim.payload(), Shim.payload(id="job-2")]),
    "delete its files": ("DELETE", f"/assets/workspace-temp/{USER}/job-1", None),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_answer_says_that_a_newer_release_must_answer(
    newer_shim: Shim, redis_url: str, name: str
) -> None:
    """During an upgrade a load balancer may still send requests to the old shim: the caller tries again."""
    method, path, body = REQUESTS[name]
    with redis.Redis.from_url(redis_url) as client:
        before = client.hgetall("ourvidz:job:job-1")
        answer = newer_shim.client.request(method, path, json=body)
        assert client.hgetall("ourvidz:job:job-1") == before
        assert not client.exists("ourvidz:job:job-2"), "all of several jobs are refused together"
    assert answer.status_code == 503, answer.text
    assert answer.json()["code"] == "NEWER_RELEASE"
    assert int(answer.headers["Retry-After"]) > 0


def test_lists_leave_it_out(newer_shim: Shim) -> None:
    """One job that cannot be read does not keep the others from being listed."""
    newer_shim.submit(id="job-2")
    answer = newer_shim.client.get("/jobs", params={"user_id": USER})
    assert [job["job_id"] for job in answer.json()["items"]] == ["job-2"]
