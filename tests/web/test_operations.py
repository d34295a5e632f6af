"""What operators do to queues and workers."""

from __future__ import annotations


def test_a_paused_queue_accepts_jobs_and_starts_none(shim) -> None:
    """Maintenance must not turn callers away."""
    assert shim.client.post("/queues/sdxl_queue/pause").json() == {
        "queue": "sdxl_queue", "paused": True, "depth": 0,
    }  # fmt: skip
    shim.submit()
    assert shim.ledger.claim("job-1", 1, worker_id="w", lease_s=9, token="t") is None
    assert shim.client.post("/queues/sdxl_queue/resume").json()["paused"] is False
    assert shim.claim("job-1").job_id == "job-1"


def test_a_worker_is_drained_and_brought_back(shim) -> None:
    """One machine is taken out without stopping the others."""
    shim.appear()
    answer = shim.client.post("/workers/sdxl@host-cpu/drain")
    assert answer.json() == {"worker": "sdxl@host-cpu", "draining": True}
    assert shim.client.get("/health").json()["workers"][0]["draining"] is True
    assert shim.client.post("/workers/sdxl@host-cpu/resume").json()["draining"] is False
    assert shim.client.get("/health").json()["workers"][0]["draining"] is False


def test_what_is_not_there_is_not_found(shim) -> None:
    """A typo must not look like success."""
    for path in (
        "/queues/sdxl/pause",
        "/queues/callbacks/resume",
        "/workers/nobody/drain",
        "/workers/x/resume",
    ):
        assert shim.client.post(path).status_code == 404
