"""Routes about the memory of the GPUs: who holds it, and moving models."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ourvidz import memory
from ourvidz.errors import InvalidParameters
from ourvidz.jobs.catalog import QUEUES
from ourvidz.memory import DeviceReport, ModelState, Pressure
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["memory"], responses=documented(401, 403, 422, 503))

Model = Literal["sdxl", "wan", "qwen_instruct", "qwen_base"]


class Part(BaseModel):
    """A part of a model that holds memory. `state`: `loading`, `resident`, `evicting` or `asleep`, the last
    in the memory of the host. `seconds`: how long it has been in it."""

    id: str
    family: str
    state: str
    mib: int
    busy: bool
    pinned: bool
    seconds: float
    owner: str


class Wait(BaseModel):
    """A worker that waits for memory, and the parts that it asks to leave."""

    family: str
    needed_mib: int
    seconds: float
    asks: list[str]


class DeviceStatus(BaseModel):
    """One GPU: its memory as measured last (MiB), its residents, and who waits."""

    id: str
    total: int
    used: int
    free: int
    budget: int
    pressure: Pressure
    residents: list[Part]
    waiting: list[Wait]
    stuck: list[str]


class Usage(BaseModel):
    """Memory of all GPUs together (MiB); the pressure is that of the tightest one."""

    total: int
    used: int
    free: int
    pressure: Pressure


class CompilationStatus(BaseModel):
    """Which models are compiled by settings."""

    sdxl: bool
    wan: bool
    chat: bool


class MemoryStatus(BaseModel):
    """The memory of the GPUs. Without one all sizes are 0 and `device` is `cpu`.

    `workers`: state of each family's models. `memory_allocation`: MiB on the GPU by model.
    """

    vram_usage: Usage
    workers: dict[str, ModelState]
    memory_allocation: dict[str, int]
    model_loaded: bool
    memory_usage: float = Field(description="used / total, from 0 to 1")
    device: Literal["cuda", "cpu"]
    compilation_status: CompilationStatus
    devices: list[DeviceStatus]


class WorkerMemory(BaseModel):
    """Whether a family has a model on the GPU, and its size there (MiB)."""

    loaded: bool
    memory: int


class MemoryReport(BaseModel):
    """How tight memory is, and what can be done. `available_vram` is MiB of the tightest GPU."""

    pressure_level: Pressure
    available_vram: int
    worker_status: dict[str, WorkerMemory]
    recommendations: list[str]


class MoveRequest(BaseModel):
    """Which model is moved. `force`: others are made to leave for it, or it leaves although it is pinned."""

    which: Model
    force: bool = False


class Moved(BaseModel):
    """The workers that were asked; each acts after its current job."""

    success: Literal[True] = True
    which: str
    asked: list[str]


class PinRequest(BaseModel):
    """Which model is pinned, or not."""

    which: Model
    pinned: bool = True


class Pinned(BaseModel):
    """Whether a model is pinned now."""

    success: Literal[True] = True
    which: str
    pinned: bool


class EmergencyRequest(BaseModel):
    """`force_unload` frees the memory of `target_worker`'s models; `predictive_load` loads them, or without a
    target those of all queues that have jobs; `pressure_check` lets idle models leave where memory is
    critical."""

    operation: Literal["force_unload", "predictive_load", "pressure_check"]
    target_worker: str | None = None
    force: bool = False


class EmergencyResult(BaseModel):
    """What was asked of whom: model names, each with the workers."""

    success: Literal[True] = True
    operation: str
    pressure_level: Pressure
    asked: dict[str, list[str]]


@router.get("/memory/status")
def status() -> MemoryStatus:
    """Read the memory of the GPUs."""
    app = control.current()
    reports = memory.devices()
    states = memory.model_states(reports, app.ledger.workers())
    families: dict[str, ModelState] = {}
    for model, family in memory.MODELS.items():
        name = f"{family}_worker"
        families[name] = _better(families.get(name, "offline"), states[model])
    usage = _usage(reports)
    return MemoryStatus(
        vram_usage=usage,
        workers=families,
        memory_allocation=_allocation(reports),
        model_loaded="loaded" in states.values(),
        memory_usage=round(usage.used / usage.total, 3) if usage.total else 0.0,
        device="cuda" if reports else "cpu",
        compilation_status=CompilationStatus(
            sdxl=app.settings.sdxl_compile, wan=app.settings.wan_compile, chat=app.settings.qwen_compile
        ),
        devices=[_device(report) for report in reports],
    )


@router.get("/memory/report")
def report() -> MemoryReport:
    """Read how tight memory is, and what can be done about it."""
    reports = memory.devices()
    states = memory.model_states(reports, control.current().ledger.workers())
    allocation, usage = _allocation(reports), _usage(reports)
    families = {
        family: WorkerMemory(
            loaded=any(states[model] == "loaded" for model, of in memory.MODELS.items() if of == family),
            memory=sum(allocation.get(model, 0) for model, of in memory.MODELS.items() if of == family),
        )
        for family in QUEUES
    }
    return MemoryReport(
        pressure_level=usage.pressure,
        available_vram=min((each.free_mib for each in reports), default=0),
        worker_status=families,
        recommendations=memory.recommendations(reports),
    )


@router.post("/memory/load", responses=documented(404, 409))
def load(request: MoveRequest) -> Moved:
    """Bring a model onto its workers' GPU if enough memory is free; by force others must leave for it."""
    return Moved(which=request.which, asked=memory.load(request.which, force=request.force))


@router.post("/memory/unload", responses=documented(404, 409))
def unload(request: MoveRequest) -> Moved:
    """Free the memory of a model. A pinned one leaves only by force. Its next job loads it again."""
    return Moved(which=request.which, asked=memory.unload(request.which, force=request.force))


@router.post("/memory/pin", responses=documented(404))
def pin(request: PinRequest) -> Pinned:
    """Pin a model: it leaves the GPU only by force, whatever the settings say. `pinned: false` undoes it."""
    memory.pin(request.which, pinned=request.pinned)
    return Pinned(which=request.which, pinned=request.pinned)


@router.post("/emergency/operation", responses=documented(404, 409))
def emergency(request: EmergencyRequest) -> EmergencyResult:
    """Free memory, or load what is needed, at once."""
    models = _targets(request)
    if request.operation == "force_unload":
        asked = {model: memory.unload(model, force=request.force) for model in models}
    elif request.operation == "predictive_load":
        asked = {model: memory.load(model, force=request.force) for model in models}
    else:
        asked = {model: [] for model in memory.relieve()}
    return EmergencyResult(
        operation=request.operation, pressure_level=_usage(memory.devices()).pressure, asked=asked
    )


def _targets(request: EmergencyRequest) -> list[str]:
    """The models that an emergency operation moves. `target_worker` is a model, a family, or a family with
    `_worker`. Raises `InvalidParameters`."""
    if request.operation == "pressure_check":
        return []
    target = (request.target_worker or "").removesuffix("_worker")
    models = [model for model, family in memory.MODELS.items() if target in (model, family)]
    if not models and request.operation == "predictive_load" and not target:
        return memory.models_needed()
    if not models:
        rule = f"one of {', '.join(sorted({*memory.MODELS, *QUEUES}))}"
        raise InvalidParameters(
            f"target_worker must be {rule}.", field="target_worker", rule=rule, value=request.target_worker
        )
    return models


def _usage(reports: list[DeviceReport]) -> Usage:
    tightest = min((each.free_mib for each in reports if each.is_measured), default=None)
    return Usage(
        total=sum(each.total_mib for each in reports),
        used=sum(each.used_mib for each in reports),
        free=sum(each.free_mib for each in reports),
        pressure="low" if tightest is None else memory.pressure(tightest),
    )


def _allocation(reports: list[DeviceReport]) -> dict[str, int]:
    allocation: dict[str, int] = {}
    for report in reports:
        for each in report.memory.residents:
            if each.device_mib:
                name = each.name if each.work else each.model
                allocation[name] = allocation.get(name, 0) + each.device_mib
    return allocation


def _better(first: ModelState, second: ModelState) -> ModelState:
    """The state of a family with two models: that of the one that is further up."""
    order: tuple[ModelState, ...] = ("loaded", "asleep", "unloaded", "offline")
    return min(first, second, key=order.index)


def _device(report: DeviceReport) -> DeviceStatus:
    now = report.memory.now
    parts: list[dict[str, Any]] = [
        {
            "id": report.name(each.id),
            "family": each.family,
            "state": each.state,
            "mib": each.mib,
            "busy": each.busy,
            "pinned": each.pinned,
            "seconds": round(now - each.since, 1),
            "owner": each.owner,
        }
        for each in report.memory.residents
    ]
    return DeviceStatus(
        id=report.id,
        total=report.total_mib,
        used=report.used_mib,
        free=report.free_mib,
        budget=report.budget_mib,
        pressure=report.pressure,
        residents=[Part(**part) for part in parts],
        waiting=[
            Wait(
                family=wait.family,
                needed_mib=wait.needed_mib,
                seconds=round(now - wait.since, 1),
                asks=[report.name(part) for part in wait.asks],
            )
            for wait in report.memory.waits
        ],
        stuck=[f"{report.name(each.id)}: {each.state} on {each.owner}" for each in report.stuck],
    )
