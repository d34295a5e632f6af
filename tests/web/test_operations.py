"""Routes for operators: administration, pausing queues, draining workers."""

from __future__ import annotations


def test_a_paused_queue_accepts_jobs_and_starts_none(shim) -> None:
    """Callers can submit during maintenance."""
    assert shim.client.post("/queues/sdxl_queue/pause").json() == {
        "queue": "sdxl_queue", "paused": True, "depth": 0,
    }  # fmt: skip
    shim.submit()
    assert shim.ledger.claim("job-1", 1, worker_id="w", lease_s=9, token="t") is None
    assert shim.client.post("/queues/sdxl_queue/resume").json()["paused"] is False
    assert shim.claim("job-1").job_id == "job-1"


def test_a_worker_is_drained_and_resumed(shim) -> None:
    """One machine is taken out of service while the others go on."""
    shim.register_worker()
    answer = shim.client.post("/workers/sdxl@host-cpu/drain")
    assert answer.json() == {"worker": "sdxl@host-cpu", "draining": True}
    assert shim.client.get("/health").json()["workers"][0]["draining"] is True
    assert shim.client.post("/workers/sdxl@host-cpu/resume").json()["draining"] is False
    assert shim.client.get("/health").json()["workers"][0]["draining"] is False


def test_an_unknown_queue_or_worker_is_not_found(shim) -> None:
    """A misspelled name must not look like success."""
    for path in (
        "/queues/sdxl/pause",
        "/queues/callbacks/resume",
        "/workers/nobody/drain",
        "/workers/x/resume",
    ):
        assert shim.client.post(path).status_code == 404


def test_administration_runs_without_the_chat_worker(shim) -> None:
    """Operators need it when that worker is down. Without a body the operation is `status`."""
    shim.register_worker()
    answer = shim.client.post("/admin")
    assert answer.status_code == 200
    document = answer.json()
    assert (document["success"], document["operation"]) == (True, "status")
    assert document["result"]["queues"]["sdxl_queue"]["workers"] == 1
    assert (
        shim.client.post("/admin", json={"config": {"operation": "queues"}}).json()["operation"] == "queues"
    )
    assert shim.ledger.page().records == []


def test_an_unknown_operation_is_refused(shim) -> None:
    """The error names the field."""
    for body in ({"operation": "reboot"}, {"operation": 7}):
        answer = shim.client.post("/admin", json=body)
        assert (answer.status_code, answer.json()["field"]) == (422, "operation")


def test_administration_needs_the_admin_scope(open_shim) -> None:
    """The answers contain host names and process ids."""
    shim = open_shim(OURVIDZ_API_KEYS="a:b:jobs+chat o:p:admin")
    assert shim.client.post("/admin", headers={"X-API-Key": "b"}).status_code == 403
    assert shim.client.post("/admin", headers={"X-API-Key": "p"}).status_code == 200


def test_assets_are_deleted_by_key(shim) -> None:
    """Also those of a job whose record is gone. Doing it twice is no error."""
    shim.store.put("workspace-temp/u/gone/0.png", b"png", content_type="image/png")
    for _ in range(2):
        answer = shim.client.delete("/assets/workspace-temp/u/gone")
        assert answer.json() == {"key": "workspace-temp/u/gone", "deleted": True}
    assert not shim.store.exists("workspace-temp/u/gone/0.png")
    assert shim.client.delete("/assets/workspace-temp/u").status_code == 422


def test_the_assets_of_an_unfinished_job_are_not_deleted(shim) -> None:
    """Its worker is about to store them."""
    shim.submit()
    user_id = shim.ledger.get("job-1").user_id
    assert shim.client.delete(f"/assets/workspace-temp/{user_id}/job-1").status_code == 409
