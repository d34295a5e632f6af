"""The audit log."""

from __future__ import annotations

from structlog.testing import capture_logs


def audited(logs) -> list[dict[str, object]]:
    return [line for line in logs if line["event"] == "audit"]


def test_a_submission_leaves_one_line_without_its_prompt(open_shim) -> None:
    """Who, what, when and how it ended, never what was asked for."""
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


def test_refusals_are_audited_with_their_code(open_shim) -> None:
    """Also of reading requests: they are what an attack looks like."""
    shim = open_shim(OURVIDZ_API_KEYS="shop:s3cret:jobs")
    with capture_logs() as logs:
        shim.client.get("/jobs")
        shim.client.post("/queues/sdxl_queue/pause", headers={"X-API-Key": "s3cret"})
        shim.client.post("/jobs", content=b"{", headers={"X-API-Key": "s3cret"})
    told = [(line["who"], line["outcome"]) for line in audited(logs)]
    assert told == [("nobody", "UNAUTHORIZED"), ("shop", "FORBIDDEN"), ("shop", "INVALID_PARAMETERS")]


def test_reading_leaves_no_line(shim) -> None:
    """Polling would drown the rest."""
    with capture_logs() as logs:
        shim.client.get("/jobs")
    assert audited(logs) == []
