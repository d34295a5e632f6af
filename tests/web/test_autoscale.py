"""`GET /autoscale/{queue}`: what autoscalers read."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz.jobs.catalog import QUEUES
from tests.web.conftest import USER, Shim

OpenShim = Any


@pytest.mark.parametrize("queue", ["sdxl_queue", "wan_queue", "chat_queue"])
def test_an_unused_queue_wants_no_worker(shim: Shim, queue: str) -> None:
    """A new installation costs nothing until its first job."""
    answer = shim.client.get(f"/autoscale/{queue}").json()
    assert (answer["queue"], answer["wanted"], answer["busy"], answer["idle_s"]) == (queue, 0, 0, None)


def test_jobs_want_workers(shim: Shim) -> None:
    """Three jobs of 30 seconds are to be done in a minute."""
    for number in range(3):
        shim.submit(id=f"job-{number}")
    answer = shim.client.get("/autoscale/sdxl_queue").json()
    assert (answer["wanted"], answer["queued"], answer["remaining_s"]) == (2, 3, 90.0)
    assert shim.client.get("/autoscale/wan_queue").json()["wanted"] == 0


def test_after_the_last_job_a_worker_is_kept_for_a_while(open_shim: OpenShim) -> None:
    """The next job of the same user comes soon, and a start costs a minute."""
    shim = open_shim(OURVIDZ_AUTOSCALE_IDLE_S=300)
    shim.submit()
    shim.end("job-1", shim.completed())
    assert shim.client.get("/autoscale/sdxl_queue").json()["wanted"] == 1


def test_the_settings_bound_the_number(open_shim: OpenShim) -> None:
    """By family: an operator has not the same number of cards for each."""
    shim = open_shim(
        OURVIDZ_AUTOSCALE_TARGET_WAIT_S={"sdxl": 10},
        OURVIDZ_AUTOSCALE_MAX={"sdxl": 4},
        OURVIDZ_AUTOSCALE_MIN={"chat": 1},
        OURVIDZ_AUTOSCALE_IDLE_S=0,
        OURVIDZ_CHAT_BATCH=5,
    )
    for number in range(9):
        shim.submit(id=f"job-{number}")
    answer = shim.client.get("/autoscale/sdxl_queue").json()
    assert (answer["wanted"], answer["maximum"], answer["target_wait_s"]) == (4, 4, 10.0)
    assert shim.client.get("/autoscale/chat_queue").json()["wanted"] == 1
    assert shim.client.get("/autoscale/wan_queue").json()["target_wait_s"] == 300.0
    together = [shim.client.get(f"/autoscale/{queue}").json()["jobs_at_a_time"] for queue in QUEUES.values()]
    assert together == [1, 1, 5]


def test_a_queue_without_workers_takes_jobs_where_it_may_scale_from_zero(open_shim: OpenShim) -> None:
    """With the grace period of the manifests; a fleet at zero would never start again otherwise."""
    shim = open_shim(OURVIDZ_WORKER_GRACE_S=2592000)
    shim.submit()
    assert shim.client.get("/autoscale/sdxl_queue").json()["wanted"] == 1


@pytest.mark.parametrize("queue", ["maintenance", "sdxl", "sdxl_queue:1", "%2e%2e"])
def test_an_unknown_queue_is_not_found(shim: Shim, queue: str) -> None:
    """The queues of the broker's own are none of the catalog's."""
    assert shim.client.get(f"/autoscale/{queue}").status_code == 404


def test_it_is_read_with_the_scope_read_or_admin(open_shim: OpenShim) -> None:
    """An autoscaler's key opens nothing else."""
    shim = open_shim(OURVIDZ_API_KEYS="caller:one:jobs+chat keda:two:read admin:three:admin")
    keys = {"one": 403, "two": 200, "three": 200}
    for key, status in keys.items():
        headers = {"Authorization": f"Bearer {key}"}
        assert shim.client.get("/autoscale/sdxl_queue", headers=headers).status_code == status
    assert shim.client.get("/autoscale/sdxl_queue").status_code == 401
    headers = {"X-API-Key": "two"}
    others = [
        shim.client.get("/jobs", headers=headers),
        shim.client.post("/jobs", json=shim.payload(user_id=USER), headers=headers),
        shim.client.get("/usage", headers=headers),
        shim.client.post("/admin", json={"operation": "queues"}, headers=headers),
        shim.client.post("/queues/sdxl_queue/pause", headers=headers),
        shim.client.get("/debug/env", headers=headers),
    ]
    assert [answer.status_code for answer in others] == [403] * len(others)
