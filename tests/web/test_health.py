"""The routes for health, status and metrics."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from unittest.mock import patch

import pytest

import ourvidz
from ourvidz.errors import WorkerUnavailable
from ourvidz.wiring import control


def test_health_lists_the_live_workers(shim) -> None:
    """Existing callers read these fields."""
    document = shim.client.get("/health").json()
    assert document["status"] == "degraded"
    assert document["reasons"] == [{"code": "no_worker", "message": "No worker takes jobs."}]
    shim.register_worker()
    document = shim.client.get("/health").json()
    assert (document["status"], document["reasons"]) == ("healthy", [])
    loaded = [document[name] for name in ("model_loaded", "wan_model_loaded", "qwen_model_loaded")]
    assert loaded == [True, False, False]
    assert document["device"] == "cpu"
    assert document["workers"] == [
        {
            "id": "sdxl@host-cpu", "queue": "sdxl_queue", "host": "host", "pid": 7, "gpu": None,
            "state": "idle", "draining": False, "error": None, "retry_at": None,
        }
    ]  # fmt: skip


def test_callers_without_a_key_do_not_see_the_workers(open_shim) -> None:
    """Host names and process ids need a key."""
    shim = open_shim(OURVIDZ_API_KEYS="a:b:jobs")
    shim.register_worker()
    assert shim.client.get("/health").json()["workers"] == []
    assert len(shim.client.get("/health", headers={"X-API-Key": "b"}).json()["workers"]) == 1


def test_ready_needs_a_worker_with_its_model_loaded(shim) -> None:
    """A load balancer sends nothing to a shim that could only queue."""
    assert shim.client.get("/health/ready").status_code == 503
    shim.register_worker(state="starting", models=())
    assert shim.client.get("/health/ready").json()["code"] == "WORKER_UNAVAILABLE"
    shim.register_worker(state="busy")
    assert shim.client.get("/health/ready").status_code == 200


def test_a_drained_worker_is_not_ready(shim) -> None:
    """It claims nothing: jobs that a load balancer sends here would wait."""
    shim.register_worker()
    shim.ledger.set_draining("sdxl@host-cpu", True)
    assert shim.client.get("/health/ready").status_code == 503
    assert shim.client.get("/health").json()["reasons"][0]["code"] == "no_worker"
    shim.register_worker(id="wan@host-cpu", family="wan", queue="wan_queue", models=("wan",))
    assert shim.client.get("/health/ready").status_code == 200
    assert shim.client.get("/health").json()["status"] == "healthy"


def test_health_tells_that_nothing_is_recovered(shim) -> None:
    """The keeper may have died hours ago, and jobs that are not lost still run."""
    shim.register_worker()
    shim.ledger.end_sweep([])
    shim.client.app.state.started_at -= 1000
    assert shim.client.get("/health").json()["status"] == "healthy"
    shim.ledger.end_sweep(["wan_queue"])
    (reason,) = shim.client.get("/health").json()["reasons"]
    assert reason["code"] == "sweep_failing"
    assert "wan_queue" in reason["message"]


def test_health_and_metrics_tell_that_new_jobs_are_refused(shim) -> None:
    """An operator sees it before callers complain."""
    shim.register_worker()
    shim.ledger.end_sweep([])
    assert 'ourvidz_headroom_ratio{resource="queue"} 1.0' in shim.client.get("/metrics").text
    shim.submit()
    capacity = control.current().capacity
    capacity._max_queued, capacity._measured_at = 1, None
    (reason,) = shim.client.get("/health").json()["reasons"]
    assert (reason["code"], "1 jobs are queued" in reason["message"]) == ("capacity_exceeded", True)
    assert 'ourvidz_headroom_ratio{resource="queue"} 0.0' in shim.client.get("/metrics").text


def test_without_a_ledger_a_shim_is_live_but_not_ready(shim, monkeypatch) -> None:
    """Restarting the shim would not repair Redis."""

    def unreachable(**_: object) -> None:
        raise WorkerUnavailable("away")

    monkeypatch.setattr(shim.ledger, "ping", unreachable)
    monkeypatch.setattr(shim.ledger, "workers", unreachable)
    monkeypatch.setattr(shim.ledger, "online_workers", unreachable)
    assert shim.client.get("/health/live").status_code == 200
    assert shim.client.get("/health/ready").status_code == 503
    document = shim.client.get("/health").json()
    assert document["status"] == "degraded"
    assert [reason["code"] for reason in document["reasons"]] == ["ledger_unreachable"]


def test_status_describes_the_image_worker(shim) -> None:
    """Callers choose batch sizes and tiers by it."""
    shim.register_worker()
    document = shim.client.get("/status").json()
    assert document["model"] == "tiny-sdxl"
    assert document["batch_support"] == [1, 3, 6]
    assert document["quality_tiers"] == ["fast", "high"]
    assert document["job_types"]["sdxl_image_fast"] == {
        "quality_tier": "fast", "steps": 15, "guidance_scale": 6.0, "expected_time": 30,
    }  # fmt: skip


def test_status_describes_the_video_worker_on_request(shim) -> None:
    """An unknown `worker_type` is refused."""
    wan = {"id": "wan@host-cpu", "family": "wan", "queue": "wan_queue", "models": ("wan",)}
    assert shim.client.get("/status?worker_type=wan").json()["model"] == "not loaded"
    shim.register_worker(**wan, detail={"info": {"wan": {"name": "tiny-wan", "device": "cpu"}}})
    document = shim.client.get("/status?worker_type=wan").json()
    assert (document["worker_type"], document["model"], document["batch_support"]) == ("wan", "tiny-wan", [1])
    assert document["quality_tiers"] == ["fast", "high"]
    assert document["job_types"]["video_high"]["steps"] == 50
    assert shim.client.get("/health").json()["wan_model_loaded"] is True
    assert shim.client.get("/status?worker_type=opera").status_code == 422


@pytest.mark.parametrize("family", ["sdxl", "wan"])
def test_status_names_the_pipeline_class_that_takes_reference_images(shim, family) -> None:
    """The shim imports no pipelines, so it holds the name as a constant: the class must exist."""
    name = shim.client.get(f"/status?worker_type={family}").json()["i2i_pipeline"]
    source = Path(ourvidz.__file__).parent / "pipelines" / family / "pipeline.py"
    assert re.search(rf"^class {name}[(:]", source.read_text(), re.MULTILINE)


def test_every_loaded_model_has_a_row(shim) -> None:
    """Name and device of each model, without host names."""
    assert shim.client.get("/model/info").json() == {"models": []}
    shim.register_worker()
    shim.register_worker(id="wan@host-cpu", family="wan", queue="wan_queue", state="starting", detail={})
    assert shim.client.get("/model/info").json() == {
        "models": [
            {
                "family": "sdxl", "queue": "sdxl_queue", "state": "idle",
                "info": {"name": "tiny-sdxl", "device": "cpu"},
            }
        ]
    }  # fmt: skip


ODD_DETAILS = {
    "flat": {"info": {"name": "null", "loaded": True, "device": "none"}},
    "a list": {"info": ["sdxl"], "error": ["no", "text"], "retry_at": "soon"},
    "numbers": {"info": 3, "error": 7, "retry_at": [1]},
    "nothing": {"info": None, "error": None, "retry_at": None},
    "mixed": {"info": {"sdxl": {"name": {"of": "models"}, "device": 3}, "loaded": True}},
}


@pytest.mark.parametrize("detail", ODD_DETAILS.values(), ids=ODD_DETAILS)
@pytest.mark.parametrize("family", ["sdxl", "chat"])
def test_what_a_worker_reports_of_itself_fails_no_route(shim, family, detail) -> None:
    """Models are written by others, and workers may be of another release."""
    shim.register_worker(id=f"{family}@odd", family=family, queue=f"{family}_queue", detail=detail)
    shim.register_worker(id=f"{family}@even")
    for path in ("/health", f"/status?worker_type={family}", "/model/info", "/enhancement/info", "/metrics"):
        assert shim.client.get(path).status_code == 200, path
    assert len(shim.client.get("/health").json()["workers"]) == 2


ODD_HEARTBEATS = {
    "a worker": ("id", '"\\ud800"'),
    "a family": ("family", '"\\ud800"'),
    "a number": ("pid", "1e400"),
    "models": ("models", "[" * 900 + "]" * 900),
    "deep details": ("detail", '{"info": {"sdxl": {"a": ' + "[" * 900 + "]" * 900 + "}}}"),
    "details without an end": ("detail", "[" * 9000 + "]" * 9000),
    "large details": ("detail", '{"info": {"sdxl": {"name": "' + "x" * 1_000_000 + '"}}}'),
    "no number": (
        "detail",
        '{"info": {"sdxl": {"name": NaN}}, "metrics": {"\\ud800": 1}, "retry_at": 1e400}',
    ),
}


@pytest.mark.parametrize(("field", "value"), ODD_HEARTBEATS.values(), ids=ODD_HEARTBEATS)
def test_no_heartbeat_fails_a_route(shim, field, value) -> None:
    """Whoever may write one: half a character, numbers and nesting that no writer of JSON takes."""
    shim.register_worker()
    shim.register_worker(id="other@host")
    client, prefix = shim.ledger._connection.client, shim.ledger._keys.prefix
    data = json.loads(client.hget(f"{prefix}worker:other@host", "data")) | {field: "@"}
    client.hset(f"{prefix}worker:other@host", "data", json.dumps(data).replace('"@"', value))
    client.hset(f"{prefix}worker:third@host", "data", "{}")
    client.zadd(f"{prefix}workers", {"third@host": time.time()})
    for path in ("/health", "/health/ready", "/status", "/model/info", "/metrics", "/memory/status"):
        assert shim.client.get(path).status_code == 200, path
    assert "sdxl@host-cpu" in {worker["id"] for worker in shim.client.get("/health").json()["workers"]}


def test_a_worker_is_seen_whatever_its_models_say_of_themselves(shim) -> None:
    """The path of a checkpoint may be no text, and a model of one's own may report what JSON lacks."""
    info = {"name": "caf\udce9", "dtype": object(), "sizes": {64, 128}, "share": float("nan")}
    shim.register_worker(detail={"info": {"sdxl": info}})
    (row,) = shim.client.get("/model/info").json()["models"]
    assert row["info"]["name"] == "caf?"


def test_the_description_of_a_single_model_needs_no_name(shim) -> None:
    """A pipeline of one's own may describe itself flat."""
    shim.register_worker(detail=ODD_DETAILS["flat"])
    assert shim.client.get("/health").json()["device"] == "none"
    assert [row["info"]["name"] for row in shim.client.get("/model/info").json()["models"]] == ["null"]


def test_a_heartbeat_that_cannot_be_read_hides_no_other_worker(shim) -> None:
    """It may be of a later release, or damaged."""
    shim.register_worker()
    with patch("ourvidz.ledger.workers.dump_worker", return_value='{"id": "wan@host", "models": 4}'):
        shim.register_worker(id="wan@host")
    assert [worker["id"] for worker in shim.client.get("/health").json()["workers"]] == ["sdxl@host-cpu"]
    assert shim.client.get("/metrics").status_code == 200


def numbers(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_come_from_the_ledger(shim) -> None:
    """They are the same in every process and survive a restart."""
    shim.register_worker(state="busy")
    for job_id in ("job-1", "job-2"):
        shim.submit(id=job_id)
    shim.end("job-1", shim.completed())
    answer = shim.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    values = numbers(answer.text)
    assert values['ourvidz_queue_depth{queue="sdxl_queue"}'] == 1
    assert values['ourvidz_jobs_total{ending="completed",type="sdxl_image_fast"}'] == 1
    assert values['ourvidz_generation_seconds_sum{type="sdxl_image_fast"}'] == 1.5
    assert values['ourvidz_generation_seconds_count{type="sdxl_image_fast"}'] == 1
    assert values["ourvidz_assets_unsigned_total"] == 0
    assert values['ourvidz_embedding_cache_total{result="hit"}'] == 0
    assert values["ourvidz_outbox_pending"] == 2
    assert 0 < values["ourvidz_outbox_lag_seconds"] < 60
    assert 0 < values['ourvidz_queue_oldest_seconds{queue="sdxl_queue"}'] < 60
    assert values['ourvidz_queue_oldest_seconds{queue="wan_queue"}'] == 0
    assert values['ourvidz_workers_failed{family="sdxl"}'] == 0
    for name in ("sweep_failed_phases", "leases_stuck", "jobs_quarantined"):
        assert values[f"ourvidz_{name}"] == 0
    assert "ourvidz_sweep_age_seconds" not in values, "no sweep has run"
    assert values['ourvidz_workers_busy{family="sdxl"}'] == 1
    assert values['ourvidz_callbacks_total{state="delivered"}'] == 0


def test_metrics_show_what_jobs_produced_and_what_was_reported(shim) -> None:
    """The same figures as in the documents about ended jobs, and those that were dropped."""
    shim.register_worker(detail={"metrics": {"sent": 4, "dropped": 1}})
    shim.submit(id="job-1")
    shim.end("job-1", shim.completed())
    values = numbers(shim.client.get("/metrics").text)
    assert values['ourvidz_assets_generated_total{type="sdxl_image_fast"}'] == len(shim.completed().assets)
    worker = 'worker="sdxl@host-cpu"'
    assert values[f'ourvidz_metrics_reports_total{{result="sent",{worker}}}'] == 4
    assert values[f'ourvidz_metrics_reports_total{{result="dropped",{worker}}}'] == 1


def test_metrics_show_what_a_watchdog_needs(shim) -> None:
    """Each has a value of its own to alert on."""
    shim.register_worker(detail={"error": "/models/x is missing"})
    shim.ledger.end_sweep(["wan_queue", "purge"])
    shim.ledger.quarantine("a", index="leases", reason="it has a record of version 2")
    values = numbers(shim.client.get("/metrics").text)
    assert 0 <= values["ourvidz_sweep_age_seconds"] < 60
    assert values["ourvidz_sweep_failed_phases"] == 2
    assert values["ourvidz_jobs_quarantined"] == 1
    assert values['ourvidz_workers_failed{family="sdxl"}'] == 1


def test_metrics_need_the_admin_scope_from_other_machines(open_shim) -> None:
    """The test client does not connect from loopback."""
    shim = open_shim(OURVIDZ_API_KEYS="a:b:jobs o:p:admin")
    assert shim.client.get("/metrics").status_code == 401
    assert shim.client.get("/metrics", headers={"X-API-Key": "b"}).status_code == 403
    assert shim.client.get("/metrics", headers={"X-API-Key": "p"}).status_code == 200


def test_health_says_which_queue_has_a_worker_that_cannot_load(shim) -> None:
    """The error, which may name paths, is in the worker's row, which only callers with a key see."""
    error = {"error": "no file /models/sdxl", "retry_at": 1_700_000_060.0}
    shim.register_worker(state="failed", models=(), detail=error)
    document = shim.client.get("/health").json()
    assert {"workers_failed", "no_worker"} <= {reason["code"] for reason in document["reasons"]}
    (row,) = document["workers"]
    assert (row["state"], row["error"], row["retry_at"]) == ("failed", error["error"], error["retry_at"])
    assert shim.client.get("/health/ready").status_code == 503
    shim.register_worker(id="sdxl@other-cpu")
    document = shim.client.get("/health").json()
    codes = {reason["code"] for reason in document["reasons"]}
    assert ("workers_failed" in codes, "no_worker" in codes) == (True, False)
    assert shim.client.get("/health/ready").status_code == 200
