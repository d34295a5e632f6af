"""The Upstash REST routes."""

from __future__ import annotations

import json
from typing import Any

import pytest


def test_a_push_returns_the_depth_of_the_queue(shim) -> None:
    """The live edge function sends one job and reads this result."""
    body = [json.dumps(shim.payload())]
    assert shim.client.post("/rpush/sdxl_queue", json=body).json() == {"result": 1}
    assert shim.client.get("/llen/sdxl_queue").json() == {"result": 1}


def test_pushing_the_same_job_again_queues_nothing(shim) -> None:
    """The edge function retries a push whose response it did not get."""
    body = [json.dumps(shim.payload())]
    for _ in range(3):
        assert shim.client.post("/rpush/sdxl_queue", json=body).json() == {"result": 1}


def test_one_invalid_job_among_several_queues_none(shim) -> None:
    """The caller can repeat the whole push; the error names the job."""
    body = [json.dumps(shim.payload()), json.dumps(shim.payload(id="job-2", config={"steps": 0}))]
    answer = shim.client.post("/rpush/sdxl_queue", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, "[1].config.steps")
    assert shim.ledger.queue_depth("sdxl_queue") == 0


@pytest.mark.parametrize("body", [[], {}, "x", ["x"], [1], [None], [["[]"]], ["{}"] * 101])
def test_a_body_that_is_no_list_of_jobs_is_refused(shim, body: Any) -> None:
    """A plain object is refused too: it is not what Upstash takes."""
    answer = shim.client.post("/rpush/sdxl_queue", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_PARAMETERS")


def test_an_unknown_queue_has_no_depth(shim) -> None:
    """A misspelled name must not look like an empty queue."""
    assert shim.client.get("/llen/sdxl").status_code == 404
