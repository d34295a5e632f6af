"""The memory of the GPUs as operators see it: who holds it, how tight it is, and what can be done.

Moving models is asked of the workers that have them: each does so between two jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ourvidz import dispatch
from ourvidz.errors import Conflict, NotFound
from ourvidz.jobs.catalog import QUEUES
from ourvidz.records.devices import WORKER_MARK, DeviceMemory, Resident
from ourvidz.records.record import Worker
from ourvidz.wiring import control

MODELS = {"sdxl": "sdxl", "wan": "wan", "qwen_instruct": "chat", "qwen_base": "chat"}
"""The models that reside on a GPU, each with the family of the workers that have it."""
STUCK_S = 30.0
"""A part that is being loaded or evicted for longer is reported as stuck."""

Pressure = Literal["critical", "high", "medium", "low"]
ModelState = Literal["loaded", "asleep", "unloaded", "offline"]
PRESSURES: tuple[tuple[float, Pressure], ...] = ((5, "critical"), (10, "high"), (15, "medium"))
"""The pressure on a device with less free memory than so many GiB."""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device, as its workers last measured it (MiB), and what the ledger knows of it."""

    id: str
    total_mib: int
    free_mib: int
    budget_mib: int
    memory: DeviceMemory

    @property
    def used_mib(self) -> int:
        """What all processes hold."""
        return self.total_mib - self.free_mib

    def name(self, part: str) -> str:
        """The name of a part as operators see it: of the model and, where it has several, of the part, and
        behind an `@` host and GPU of the worker where several workers of this device hold the part."""
        name = part.partition(WORKER_MARK)[0]
        asked = (asked for wait in self.memory.waits for asked in wait.asks)
        ids = {part, *(each.id for each in self.memory.residents), *asked}
        alike = sum(each.partition(WORKER_MARK)[0] == name for each in ids)
        return part if alike > 1 else name

    @property
    def pressure(self) -> Pressure:
        """How tight the memory is; `low` until a worker has measured it."""
        return pressure(self.free_mib) if self.is_measured else "low"

    @property
    def is_measured(self) -> bool:
        """Whether a worker has measured the device."""
        return self.total_mib > 0

    @property
    def stuck(self) -> tuple[Resident, ...]:
        """The parts that have been loaded or evicted for too long."""
        moving = (each for each in self.memory.residents if each.state in ("loading", "evicting"))
        return tuple(each for each in moving if self.memory.now - each.since > STUCK_S and not each.work)


def pressure(free_mib: float) -> Pressure:
    """The pressure on a device with so much free memory."""
    return next((level for limit_gib, level in PRESSURES if free_mib < limit_gib * 1024), "low")


def devices() -> list[DeviceReport]:
    """Read all devices whose memory is shared; none where the workers have no GPU."""
    ledger = control.current().ledger
    return [_report(device, ledger.device_memory(device)) for device in ledger.devices()]


def model_states(reports: list[DeviceReport], workers: list[Worker]) -> dict[str, ModelState]:
    """Return the state of each model. Without a GPU a model counts as loaded where its worker says so."""
    online = {worker.family for worker in workers if worker.state != "offline"}
    loaded = {family for worker in workers if worker.state != "offline" for family in worker.models}
    rows: dict[str, list[Resident]] = {}
    for report in reports:
        for each in report.memory.residents:
            rows.setdefault(each.model, []).append(each)
    states: dict[str, ModelState] = {}
    for model, family in MODELS.items():
        if family not in online:
            states[model] = "offline"
        elif model in rows:
            asleep = all(each.state == "asleep" for each in rows[model])
            states[model] = "asleep" if asleep else "loaded"
        else:
            states[model] = "loaded" if not reports and family in loaded else "unloaded"
    return states


def recommendations(reports: list[DeviceReport]) -> list[str]:
    """What an operator can do now, each with a command; empty where nothing is needed."""
    advice = []
    for report in reports:
        if report.pressure in ("critical", "high"):
            idle = [each for each in report.memory.residents if _may_be_unloaded(each)]
            advice += [
                f"{report.name(each.id)} is idle and holds {each.mib} MiB: ourvidz memory unload {each.model}"
                for each in idle
            ]
        advice += [
            f"{each.model} has been {each.state} for {report.memory.now - each.since:.0f} s on {each.owner}: "
            f"ourvidz memory unload {each.model} --force"
            for each in report.stuck
        ]
        advice += [
            f"{wait.family} has waited {report.memory.now - wait.since:.0f} s for {wait.needed_mib} MiB: "
            "ourvidz memory status --watch"
            for wait in report.memory.waits
            if report.memory.now - wait.since > control.current().settings.gpu_turn_s
        ]
    return advice


def load(model: str, *, force: bool = False) -> list[str]:
    """Ask the workers of a model to bring it onto their GPU if enough memory is free, by force also if others
    must leave. Returns the workers whose message was sent. Raises `NotFound`, or `Conflict` without a GPU."""
    return _ask(model, "load", force=force)


def unload(model: str, *, force: bool = False) -> list[str]:
    """Ask the workers of a model to free its memory, on the GPU and on the host. Returns the workers whose
    message was sent. Raises `NotFound`, or `Conflict` without a GPU and for a pinned model without force."""
    check_model(model)
    if is_pinned(model) and not force:
        raise Conflict(f"{model} is pinned: it leaves the GPU only by force.")
    return _ask(model, "unload", force=force)


def pin(model: str, *, pinned: bool = True) -> None:
    """Pin a model on every GPU, or not, from now on. Raises `NotFound`."""
    control.current().ledger.pin_part(check_model(model), pinned)


def is_pinned(model: str) -> bool:
    """Whether a model leaves the GPU only by force."""
    app = control.current()
    return app.ledger.pins().get(model, model in app.settings.gpu_pinned)


def relieve() -> list[str]:
    """Ask the idle models that are not pinned to leave every GPU under critical pressure. Returns them. A
    model is idle when no job uses any of its parts."""
    reports = [report for report in devices() if report.pressure == "critical"]
    busy = {each.model for report in reports for each in report.memory.residents if each.busy}
    idle = {
        each.model: None
        for report in reports
        for each in report.memory.residents
        if _may_be_unloaded(each) and each.model not in busy
    }
    for model in idle:
        _ask(model, "unload", force=False)
    return list(idle)


def prefetch() -> list[str]:
    """Ask the workers of queues with jobs to load their models where nobody waits for memory: a clip whose
    prompt is still being enhanced will need Wan next. Loading takes free memory only. Returns the models
    that were asked for."""
    reports = devices()
    if not reports or any(report.memory.waits for report in reports):
        return []
    residents = [each for report in reports for each in report.memory.residents]
    present = {each.model for each in residents if each.state != "asleep"}
    return [model for model in models_needed() if model not in present and _ask(model, "load", force=False)]


def models_needed() -> list[str]:
    """The models of the queues that have jobs, whose workers should have them loaded."""
    ledger = control.current().ledger
    waiting = {family for family, queue in QUEUES.items() if ledger.queue_depth(queue)}
    return [model for model, family in MODELS.items() if family in waiting]


def check_model(model: str) -> str:
    """Return `model` itself. Raises `NotFound` for an unknown name."""
    if model not in MODELS:
        raise NotFound("There is no model of this name.", field="which", rule=", ".join(MODELS), value=model)
    return model


def _ask(model: str, action: Literal["load", "unload"], *, force: bool) -> list[str]:
    family = MODELS[check_model(model)]
    if not control.current().ledger.devices():
        raise Conflict("No worker of this installation has a GPU: its models stay loaded.")
    online = control.current().ledger.online_workers(family=family)
    return [each.id for each in online if dispatch.move_model(each.id, model, action, force=force)]


def _may_be_unloaded(part: Resident) -> bool:
    return part.state == "resident" and not part.busy and not part.pinned and not part.work


def _report(device: str, memory: DeviceMemory) -> DeviceReport:
    measured = memory.measured
    return DeviceReport(
        device,
        int(measured.get("total_mib", 0)),
        int(measured.get("free_mib", 0)),
        int(measured.get("budget_mib", 0)),
        memory,
    )
