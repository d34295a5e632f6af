"""The audit log."""

from __future__ import annotations

import json

from structlog.testing import capture_logs

from ourvidz.auditing.segments import segments_in
from ourvidz.wiring import control
from ourvidz.wiring.auditing import audit_folder, signing_keys, verify_logs


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


def test_the_audit_log_has_who_what_from_where_and_outcome(open_shim, tmp_path) -> None:
    """Key ids, never keys; paths of routes only, since others could be a prompt."""
    shim = open_shim(OURVIDZ_API_KEYS="shop:s3cret:jobs", OURVIDZ_AUDIT_LOG=True)
    key = {"X-API-Key": "s3cret"}
    shim.client.post("/jobs", json=shim.payload(), headers=key)
    shim.client.get("/jobs")
    shim.client.post("/a red circle?prompt=a+red+circle", headers=key)
    control_plane_writer = control.current().audit
    assert control_plane_writer is not None
    control_plane_writer.close()
    (folder,) = (path for path in audit_folder(shim.settings).iterdir() if path.is_dir())
    written = "".join(path.read_text() for path in segments_in(folder))
    entries = [json.loads(line) for line in written.splitlines()[1:]]
    assert [entry["event"] for entry in entries] == ["log_opened", *["request"] * 3, "log_closed"]
    submitted, refused, unknown = entries[1:4]
    assert {name: submitted[name] for name in submitted if name not in {"n", "at", "user_id"}} == {
        "event": "request", "who": "shop", "key_id": "settings:shop", "address": "testclient",
        "method": "POST", "path": "/jobs", "status": 202, "outcome": "ok",
        "job_id": "job-1", "type": "sdxl_image_fast",
    }  # fmt: skip
    assert (refused["who"], refused["outcome"], refused["path"]) == ("nobody", "UNAUTHORIZED", "/jobs")
    assert "path" not in unknown
    assert "circle" not in written
    assert "s3cret" not in written
    (report,), _ = verify_logs(shim.settings, shim.store, signing_keys(shim.settings))
    assert report.problems == []
