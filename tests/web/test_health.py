"""Health, status and metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

import ourvidz
from ourvidz.errors import WorkerUnavailable


def test_health_tells_who_is_at_work(shim) -> None:
    """The fields that callers in the field read."""
    assert shim.client.get("/health").json()["status"] == "degraded"
    shim.appear()
    found = shim.client.get("/health").json()
    assert found["status"] == "healthy"
    loaded = [found[name] for name in ("model_loaded", "wan_model_loaded", "qwen_model_loaded")]
    assert loaded == [True, False, False]
    assert found["device"] == "cpu"
    assert found["workers"] == [
        {
            "id": "sdxl@host-cpu", "queue": "sdxl_queue", "host": "host", "pid": 7, "gpu": None,
            "state": "idle", "draining": False,
        }
    ]  # fmt: skip


def test_strangers_do_not_see_the_workers(open_shim) -> None:
    """Host names and processes are for those who hold a key."""
    shim = open_shim(OURVIDZ_API_KEYS="a:b:jobs")
    shim.appear()
    assert shim.client.get("/health").json()["workers"] == []
    assert len(shim.client.get("/health", headers={"X-API-Key": "b"}).json()["workers"]) == 1


def test_ready_waits_for_a_worker_with_its_model(shim) -> None:
    """A balancer sends nothing to a shim that could only queue."""
    assert shim.client.get("/health/ready").status_code == 503
    shim.appear(state="starting", models=())
    assert shim.client.get("/health/ready").json()["code"] == "WORKER_UNAVAILABLE"
    shim.appear(state="busy")
    assert shim.client.get("/health/ready").status_code == 200


def test_a_shim_without_its_ledger_lives_but_is_not_ready(shim, monkeypatch) -> None:
    """Restarting the shim would not bring the server back."""

    def away() -> None:
        raise WorkerUnavailable("away")

    monkeypatch.setattr(shim.ledger, "ping", away)
    monkeypatch.setattr(shim.ledger, "workers", away)
    assert shim.client.get("/health/live").status_code == 200
    assert shim.client.get("/health/ready").status_code == 503
    assert shim.client.get("/health").json()["status"] == "degraded"


def test_status_describes_the_image_worker(shim) -> None:
    """The document callers choose batch sizes and tiers by."""
    shim.appear()
    found = shim.client.get("/status").json()
    assert found["model"] == "tiny-sdxl"
    assert found["batch_support"] == [1, 3, 6]
    assert found["quality_tiers"] == ["fast", "high"]
    assert found["job_types"]["sdxl_image_fast"] == {
        "quality_tier": "fast", "steps": 15, "guidance_scale": 6.0, "expected_time": 30,
    }  # fmt: skip


def test_status_describes_the_video_worker_when_asked(shim) -> None:
    """Its tiers are its types; a kind of worker that there is none of is refused."""
    wan = {"id": "wan@host-cpu", "family": "wan", "queue": "wan_queue", "models": ("wan",)}
    assert shim.client.get("/status?worker_type=wan").json()["model"] == "not loaded"
    shim.appear(**wan, detail={"info": {"wan": {"name": "tiny-wan", "device": "cpu"}}})
    found = shim.client.get("/status?worker_type=wan").json()
    assert (found["worker_type"], found["model"], found["batch_support"]) == ("wan", "tiny-wan", [1])
    assert found["quality_tiers"] == ["fast", "high"]
    assert found["job_types"]["video_high"]["steps"] == 50
    assert shim.client.get("/health").json()["wan_model_loaded"] is True
    assert shim.client.get("/status?worker_type=opera").status_code == 422


@pytest.mark.parametrize("family", ["sdxl", "wan"])
def test_status_names_the_pipeline_class_that_takes_reference_images(shim, family) -> None:
    """The shim imports no pipelines, so it holds the name as a constant: the class must exist."""
    name = shim.client.get(f"/status?worker_type={family}").json()["i2i_pipeline"]
    source = Path(ourvidz.__file__).parent / "pipelines" / family / "pipeline.py"
    assert f"\nclass {name}:" in source.read_text()


def test_every_loaded_model_has_a_row(shim) -> None:
    """What a model is and where it runs, without the names of hosts."""
    assert shim.client.get("/model/info").json() == {"models": []}
    shim.appear()
    shim.appear(id="wan@host-cpu", family="wan", queue="wan_queue", state="starting", detail={})
    assert shim.client.get("/model/info").json() == {
        "models": [
            {
                "family": "sdxl", "queue": "sdxl_queue", "state": "idle",
                "info": {"name": "tiny-sdxl", "device": "cpu"},
            }
        ]
    }  # fmt: skip


def numbers(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_are_made_from_the_ledger(shim) -> None:
    """They are the same whichever process is scraped, and survive a restart."""
    shim.appear(state="busy")
    for job_id in ("job-1", "job-2"):
        shim.submit(id=job_id)
    shim.end("job-1", shim.completed())
    answer = shim.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = numbers(answer.text)
    assert found['ourvidz_queue_depth{queue="sdxl_queue"}'] == 1
    assert found['ourvidz_jobs_total{ending="completed",type="sdxl_image_fast"}'] == 1
    assert found['ourvidz_generation_seconds_sum{type="sdxl_image_fast"}'] == 1.5
    assert found['ourvidz_generation_seconds_count{type="sdxl_image_fast"}'] == 1
    assert found["ourvidz_assets_unsigned_total"] == 0
    assert found["ourvidz_outbox_pending"] == 2
    assert found['ourvidz_workers_busy{family="sdxl"}'] == 1
    assert found['ourvidz_callbacks_total{state="delivered"}'] == 0


def test_metrics_from_elsewhere_need_the_admin_scope(open_shim) -> None:
    """The test client does not come from loopback, nor does what a proxy forwards."""
    shim = open_shim(OURVIDZ_API_KEYS="a:b:jobs o:p:admin")
    assert shim.client.get("/metrics").status_code == 401
    assert shim.client.get("/metrics", headers={"X-API-Key": "b"}).status_code == 403
    assert shim.client.get("/metrics", headers={"X-API-Key": "p"}).status_code == 200
