"""The audit log."""

from __future__ import annotations

from structlog.testing import capture_logs


def audited(logs) -> list[dict[str, object]]:
    return [line for line in logs if line["event"] == "audit"]


def test_a_submission_leaves_one_line_without_its_prompt(open_shim) -> None:
    """The line has caller, job, status and outcome, never prompt or key."""
    shim = open_shim(OURVIDZ_API_KEYS="shop:s3cret:jobs")
    with capture_logs() as logs:
        shim.client.post("/jobs", json=shim.payload(), headers={"X-API-Key": "s3cret"})
    (line,) = audited(logs)
    assert {name: line[name] for name in ("who", "outcome", "status", "job_id", "type", "path")} == {
        "who": "shop", "outcome": "ok", "status": 202, "job_id": "job-1", "type": "sdxl_image_fast",
        "path": "/jobs",
    }  # fmt: skip
    assert "red circle" not in str(logs)
    assert "s3cret" not in str(logs)


def test_refused_requests_are_logged_with_their_code(open_shim) -> None:
    """Reading requests too: an attack shows as a series of them."""
    shim = open_shim(OURVIDZ_API_KEYS="shop:s3cret:jobs")
    with capture_logs() as logs:
        shim.client.get("/jobs")
        shim.client.post("/queues/sdxl_queue/pause", headers={"X-API-Key": "s3cret"})
        shim.client.post("/jobs", content=b"{", headers={"X-API-Key": "s3cret"})
    outcomes = [(line["who"], line["outcome"]) for line in audited(logs)]
    assert outcomes == [("nobody", "UNAUTHORIZED"), ("shop", "FORBIDDEN"), ("shop", "INVALID_PARAMETERS")]


def test_a_successful_read_is_not_logged(shim) -> None:
    """Polling clients would fill the log."""
    with capture_logs() as logs:
        shim.client.get("/jobs")
    assert audited(logs) == []
