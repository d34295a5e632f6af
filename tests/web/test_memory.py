"""Routes about the memory of the GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from ourvidz import memory
from ourvidz.celery_settings import MOVE_TASK
from ourvidz.records.devices import Part
from ourvidz.web.memory import MoveRequest
from tests.web.conftest import Shim

TOTAL_MIB = 49_152
MIB = 1 << 20


def reside(
    shim: Shim, model: str, mib: int, *, family: str, pinned: bool = False, free_mib: int = 9_000
) -> None:
    """Let a worker hold a model on the card, and measure it."""
    owner = f"{family}@host"
    shim.register_worker(id=f"{family}@host-gpu0", family=family, queue=f"{family}_queue", models=(family,))
    answer, _ = shim.ledger.reserve_memory(
        "host:card",
        owner,
        [Part(id=model, mib=mib, pinned=pinned)],
        family=family,
        budget_mib=47_104,
        lease_s=10,
        turn_s=60,
    )
    assert answer == "granted"
    shim.ledger.move_resident("host:card", owner, model, "resident", mib=mib)
    measured = {"total_mib": TOTAL_MIB, "free_mib": free_mib, "budget_mib": 47_104}
    shim.ledger.renew_memory("host:card", owner, lease_s=10, measured=measured)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The tasks that are sent to workers' own queues, with their arguments."""
    sent: list[tuple[str, Any]] = []

    def send(task: str, worker_id: str, *, args: tuple[Any, ...] = (), **_: Any) -> bool:
        assert task == MOVE_TASK
        sent.append((worker_id, args))
        return True

    monkeypatch.setattr("ourvidz.dispatch.workers._send", send)
    return sent


def test_the_status_without_a_gpu(shim) -> None:
    """Sizes are 0, and a model counts as loaded where its worker says so."""
    shim.register_worker()
    document = shim.client.get("/memory/status").json()
    assert document["vram_usage"] == {"total": 0, "used": 0, "free": 0, "pressure": "low"}
    assert document["workers"] == {"sdxl_worker": "loaded", "wan_worker": "offline", "chat_worker": "offline"}
    assert (document["device"], document["model_loaded"], document["devices"]) == ("cpu", True, [])


def test_a_gpu_that_nobody_has_measured_is_under_no_pressure(shim, sent) -> None:
    """The first measurement follows the first grant by a second; no model is unloaded meanwhile."""
    reside(shim, "wan", 30_000, family="wan")
    shim.ledger.renew_memory("host:card", "wan@host", lease_s=10, measured={})
    assert shim.client.get("/memory/status").json()["vram_usage"]["pressure"] == "low"
    document = shim.client.post("/emergency/operation", json={"operation": "pressure_check"}).json()
    assert (document["pressure_level"], document["asked"], sent) == ("low", {}, [])


def test_the_status_of_a_shared_gpu(shim) -> None:
    """Who holds what, who waits for how much, and how tight it is."""
    reside(shim, "sdxl", 10_000, family="sdxl", pinned=True)
    reside(shim, "wan", 30_000, family="wan")
    shim.ledger.move_resident("host:card", "wan@host", "wan", "evicting", mib=30_000, host_budget_mib=99_999)
    shim.ledger.move_resident("host:card", "wan@host", "wan", "asleep", mib=30_000)
    shim.ledger.reserve_memory(
        "host:card", "chat@host", [Part(id="qwen_instruct", mib=40_000)],
        family="chat", budget_mib=47_104, lease_s=10, turn_s=60, asks=["sdxl"],
    )  # fmt: skip
    document = shim.client.get("/memory/status").json()
    assert document["vram_usage"] == {"total": TOTAL_MIB, "used": 40_152, "free": 9_000, "pressure": "high"}
    assert document["workers"] == {"sdxl_worker": "loaded", "wan_worker": "asleep", "chat_worker": "offline"}
    assert document["memory_allocation"] == {"sdxl": 10_000}
    assert document["compilation_status"] == {"sdxl": False, "wan": False, "chat": False}
    (device,) = document["devices"]
    assert [(part["id"], part["state"], part["pinned"]) for part in device["residents"]] == [
        ("sdxl", "resident", True),
        ("wan", "asleep", False),
    ]
    assert device["waiting"][0] | {"seconds": 0} == {
        "family": "chat", "needed_mib": 40_000, "seconds": 0, "asks": ["sdxl"],
    }  # fmt: skip


def test_models_of_two_workers_of_a_family_have_two_names(shim) -> None:
    """Also one that has left since it was asked to; one worker alone needs no name."""
    reside(shim, "sdxl@host-gpu0", 10_000, family="sdxl")
    assert residents(shim) == ["sdxl"]
    shim.ledger.reserve_memory(
        "host:card", "wan@host", [Part(id="wan@host-gpu0", mib=40_000)],
        family="wan", budget_mib=47_104, lease_s=10, turn_s=60, asks=["sdxl@host-gpu0", "sdxl@host-gpu1"],
    )  # fmt: skip
    assert residents(shim) == ["sdxl@host-gpu0"]
    (device,) = shim.client.get("/memory/status").json()["devices"]
    assert device["waiting"][0]["asks"] == ["sdxl@host-gpu0", "sdxl@host-gpu1"]


def residents(shim: Shim) -> list[str]:
    """The names of what resides on the card."""
    (device,) = shim.client.get("/memory/status").json()["devices"]
    return [part["id"] for part in device["residents"]]


@pytest.mark.parametrize(
    ("free_gib", "level"), [(4.9, "critical"), (5, "high"), (9.9, "high"), (10, "medium"), (15, "low")]
)
def test_the_pressure_goes_by_free_memory(shim, free_gib: float, level: str) -> None:
    """Below 5, 10 and 15 GiB."""
    reside(shim, "sdxl", 10_000, family="sdxl", free_mib=round(free_gib * 1024))
    assert shim.client.get("/memory/report").json()["pressure_level"] == level


def test_the_report_recommends_a_command(shim) -> None:
    """An idle model that is not pinned can leave."""
    reside(shim, "sdxl", 10_000, family="sdxl", pinned=True)
    reside(shim, "wan", 30_000, family="wan", free_mib=3_000)
    document = shim.client.get("/memory/report").json()
    assert (document["pressure_level"], document["available_vram"]) == ("critical", 3_000)
    assert document["recommendations"] == ["wan is idle and holds 30000 MiB: ourvidz memory unload wan"]
    assert document["worker_status"]["wan"] == {"loaded": True, "memory": 30_000}


def test_moving_a_model_is_asked_of_its_workers(shim, sent: list[Any]) -> None:
    """The answer names them."""
    reside(shim, "wan", 30_000, family="wan")
    answer = shim.client.post("/memory/load", json={"which": "wan"})
    assert answer.json() == {"success": True, "which": "wan", "asked": ["wan@host-gpu0"]}
    shim.client.post("/memory/unload", json={"which": "wan", "force": True})
    assert sent == [("wan@host-gpu0", ("wan", "load", False)), ("wan@host-gpu0", ("wan", "unload", True))]


def test_a_pinned_model_leaves_only_by_force(shim, sent: list[Any]) -> None:
    """SDXL is pinned by default; a pin can be taken off, and any model pinned."""
    reside(shim, "sdxl", 10_000, family="sdxl", pinned=True)
    assert shim.client.post("/memory/unload", json={"which": "sdxl"}).status_code == 409
    assert shim.client.post("/memory/unload", json={"which": "sdxl", "force": True}).status_code == 200
    off = shim.client.post("/memory/pin", json={"which": "sdxl", "pinned": False})
    assert off.json() == {"success": True, "which": "sdxl", "pinned": False}
    assert not shim.ledger.device_memory("host:card").residents[0].pinned
    assert shim.client.post("/memory/unload", json={"which": "sdxl"}).status_code == 200
    assert len(sent) == 2


def test_without_a_gpu_nothing_is_moved(shim) -> None:
    """The answer says why."""
    shim.register_worker()
    answer = shim.client.post("/memory/load", json={"which": "sdxl"})
    assert (answer.status_code, "has a GPU" in answer.json()["error"]) == (409, True)


def test_emergency_operations(shim, sent: list[Any]) -> None:
    """Forced unloading by worker, loading what the queues need, and relief under critical pressure."""
    reside(shim, "sdxl", 10_000, family="sdxl", pinned=True)
    reside(shim, "wan", 30_000, family="wan", free_mib=3_000)
    shim.ledger.settle_memory("host:card", "wan@host")
    forced = shim.client.post(
        "/emergency/operation",
        json={"operation": "force_unload", "target_worker": "sdxl_worker", "force": True},
    )
    assert forced.json() == {
        "success": True, "operation": "force_unload", "pressure_level": "critical",
        "asked": {"sdxl": ["sdxl@host-gpu0"]},
    }  # fmt: skip
    shim.submit()
    needed = shim.client.post("/emergency/operation", json={"operation": "predictive_load"})
    assert needed.json()["asked"] == {"sdxl": ["sdxl@host-gpu0"]}
    relief = shim.client.post("/emergency/operation", json={"operation": "pressure_check"})
    assert relief.json()["asked"] == {"wan": []}
    assert sent[-1] == ("wan@host-gpu0", ("wan", "unload", False))


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/memory/load", {"which": "vae"}, 422, "which"),
        ("/memory/unload", {}, 422, "which"),
        ("/emergency/operation", {"operation": "reboot"}, 422, "operation"),
        ("/emergency/operation", {"operation": "force_unload", "target_worker": "x"}, 422, "target_worker"),
    ],
)
def test_wrong_requests_are_refused(shim, path: str, body: dict[str, Any], status: int, field: str) -> None:
    """The error names the field."""
    answer = shim.client.post(path, json=body)
    assert (answer.status_code, answer.json()["field"]) == (status, field)


def test_memory_needs_the_admin_scope(open_shim) -> None:
    """The answers contain host names and process ids, and moving models stops others' work."""
    shim = open_shim(OURVIDZ_API_KEYS="a:k1:admin,j:k2:jobs")
    for key, status in (("k1", 200), ("k2", 403)):
        headers = {"Authorization": f"Bearer {key}"}
        assert shim.client.get("/memory/status", headers=headers).status_code == status
    assert MoveRequest.model_validate({"which": "wan"}).force is False


def test_models_that_queued_jobs_need_are_loaded_ahead(shim, sent: list[Any]) -> None:
    """Only those that are not on a GPU, and only while nobody waits for memory."""
    assert memory.prefetch() == []
    reside(shim, "sdxl", 10_000, family="sdxl", pinned=True)
    reside(shim, "wan", 30_000, family="wan")
    shim.submit()
    assert memory.prefetch() == []
    shim.submit(id="job-2", type="image_fast")
    shim.ledger.move_resident("host:card", "wan@host", "wan", "absent")
    assert memory.prefetch() == ["wan"]
    assert sent == [("wan@host-gpu0", ("wan", "load", False))]
    big = [Part(id="qwen_base", mib=40_000)]
    options: dict[str, Any] = {"family": "chat", "budget_mib": 47_104, "lease_s": 10, "turn_s": 60}
    shim.ledger.reserve_memory("host:card", "chat@host", big, **options)
    assert memory.prefetch() == []


def test_health_and_metrics_tell_of_a_part_that_is_stuck(shim, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that hangs shows within half a minute; the status names its process."""
    reside(shim, "wan", 30_000, family="wan")
    shim.ledger.end_sweep([])
    shim.ledger.move_resident("host:card", "wan@host", "wan", "evicting", mib=30_000)
    assert shim.client.get("/health").json()["reasons"] == []
    monkeypatch.setattr("ourvidz.memory.STUCK_S", -1.0)
    (reason,) = shim.client.get("/health").json()["reasons"]
    assert (reason["code"], "wan" in reason["message"]) == ("gpu_memory_stuck", True)
    (device,) = shim.client.get("/memory/status").json()["devices"]
    assert device["stuck"] == ["wan: evicting on wan@host"]
    assert "--force" in shim.client.get("/memory/report").json()["recommendations"][-1]
    lines = shim.client.get("/metrics").text.splitlines()
    metrics = dict(line.rsplit(" ", 1) for line in lines if line.startswith("ourvidz_gpu"))
    assert float(metrics['ourvidz_gpu_memory_bytes{device="host:card",kind="budget"}']) == 47_104 * MIB
    part = 'ourvidz_gpu_part_bytes{device="host:card",part="wan",state="evicting"}'
    assert float(metrics[part]) == 30_000 * MIB
    assert float(metrics['ourvidz_gpu_waiting{device="host:card"}']) == 0
