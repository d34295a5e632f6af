"""Routes for health, status and metrics. They need no key, because probes and load balancers have none."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal, get_args

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from ourvidz import __version__, dispatch, memory, metrics
from ourvidz.errors import WorkerUnavailable
from ourvidz.jobs.catalog import CATALOG, QUEUES, QualityTier, of_family
from ourvidz.records.record import Worker
from ourvidz.web import audit
from ourvidz.web.auth import Keyring, is_informed
from ourvidz.web.callers import open_callers, stopped
from ourvidz.web.problems import documented
from ourvidz.web.watchdog import Reason, ReasonCode, degradations, is_failed
from ourvidz.wiring import control

router = APIRouter(tags=["health"])

I2I_PIPELINES = {"sdxl": "SDXLPipeline", "wan": "WanPipeline"}
"""The pipeline class of each family that takes reference images; this process imports no pipelines."""


UNDISCLOSED = "not disclosed"
"""Stands for the name of a model where the caller has no key."""


class WorkerSummary(BaseModel):
    """One worker, as it registered itself. `error` is why it could not load its models; it tries again at
    `retry_at`, Unix seconds."""

    id: str
    queue: str
    host: str
    pid: int
    gpu: str | None
    state: str
    draining: bool
    error: str | None
    retry_at: float | None


class HealthReason(BaseModel):
    """Why the installation is degraded: a code for programs, a sentence for people."""

    code: ReasonCode
    message: str


class Health(BaseModel):
    """Health of the installation. `degraded`: something needs an operator; `reasons` says what.

    `model_loaded` is SDXL's.
    """

    status: Literal["healthy", "degraded"]
    reasons: list[HealthReason]
    model_loaded: bool
    wan_model_loaded: bool
    qwen_model_loaded: bool
    device: str | None
    uptime_s: float
    version: str
    workers: list[WorkerSummary]


class JobTypeDetails(BaseModel):
    """Defaults of one job type. `expected_time` is the upper bound of the generation time in seconds."""

    quality_tier: QualityTier | None
    steps: int | None
    guidance_scale: float | None
    expected_time: float


class Status(BaseModel):
    """What one kind of worker can do; `job_types` has the details by job type.

    `i2i_pipeline` is the class of the pipeline that uses reference images; null for text.
    """

    worker_type: str
    model: str
    batch_support: list[int]
    quality_tiers: list[QualityTier]
    job_types: dict[str, JobTypeDetails]
    i2i_pipeline: str | None
    thumbnail_generation: bool


class LoadedModel(BaseModel):
    """One model, as its worker reported it after loading. Sizes are in pixels, memory in MiB."""

    family: str
    queue: str
    state: str
    info: dict[str, Any]


class ModelInfo(BaseModel):
    """The models of the live workers, one row each."""

    models: list[LoadedModel]


@router.get("/health")
def health(request: Request) -> Health:
    """Read the health of the installation. If keys are configured, only callers with one see the workers and
    the device."""
    uptime_s = time.monotonic() - request.app.state.started_at
    try:
        live = control.current().ledger.online_workers()
        reasons = _reasons(live, uptime_s)
    except WorkerUnavailable:
        live = []
        reasons = [Reason("ledger_unreachable", "The job store cannot be reached: no job is accepted.")]
    gpu_workers = [worker for worker in live if worker.family in QUEUES]
    loaded = {model for worker in gpu_workers for model in worker.models}
    informed = is_informed(request)
    return Health(
        status="degraded" if reasons else "healthy",
        reasons=[HealthReason(code=reason.code, message=reason.message) for reason in reasons],
        model_loaded="sdxl" in loaded,
        wan_model_loaded="wan" in loaded,
        qwen_model_loaded="chat" in loaded,
        device=_device(gpu_workers) if informed else None,
        uptime_s=round(uptime_s, 1),
        version=__version__,
        workers=[_worker_summary(worker) for worker in live] if informed else [],
    )


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Liveness: this process responds, also while its threads wait for an unresponsive Redis."""
    return {"status": "alive"}


@router.get("/health/ready", responses=documented(503))
def ready() -> dict[str, str]:
    """Readiness: this shim goes on, the broker responds, and a worker with its models loaded takes jobs."""
    if open_callers.stopping:
        raise stopped()
    control.current().ledger.ping()
    online = control.current().ledger.online_workers()
    loaded = (w for w in online if w.family in QUEUES and w.state != "starting" and w.models)
    if all(worker.draining for worker in loaded):
        raise WorkerUnavailable("No worker is ready.")
    return {"status": "ready"}


@router.get("/status", responses=documented(422, 429, 503))
def status(request: Request, worker_type: Literal["sdxl", "wan", "chat"] = "sdxl") -> Status:
    """Read the job types, batch sizes and model of one type of worker. If keys are configured, only callers
    with one see the model."""
    rows = [row for row in of_family(worker_type) if row.kind != "admin"]
    workers = control.current().ledger.online_workers(family=worker_type)
    names = (_model_field(worker, "name") for worker in workers)
    settings = control.current().settings
    models = {"sdxl": settings.sdxl_model, "wan": settings.wan_model, "chat": settings.qwen_model}
    configured = models[worker_type]
    return Status(
        worker_type=worker_type,
        model=next((name for name in names if name), configured.stem if configured else "not loaded")
        if is_informed(request)
        else UNDISCLOSED,
        batch_support=sorted({count for row in rows for count in row.num_images}),
        quality_tiers=[
            tier for tier in get_args(QualityTier) if any(row.quality_tier == tier for row in rows)
        ],
        job_types={
            row.name: JobTypeDetails(
                quality_tier=row.quality_tier,
                steps=row.steps,
                guidance_scale=row.guidance_scale,
                expected_time=row.expected_s[1],
            )
            for row in rows
        },
        i2i_pipeline=I2I_PIPELINES.get(worker_type),
        thumbnail_generation=worker_type != "chat",
    )


@router.get("/model/info", responses=documented(429, 503))
def model_info(request: Request) -> ModelInfo:
    """Read which models are loaded, and how. If keys are configured, only callers with one see them."""
    if not is_informed(request):
        return ModelInfo(models=[])
    return ModelInfo(
        models=[
            LoadedModel(family=worker.family, queue=worker.queue, state=worker.state, info=info)
            for worker in control.current().ledger.online_workers()
            for info in worker.model_infos.values()
        ]
    )


@router.get("/", responses=documented(429))
def root() -> dict[str, str]:
    """Read the name and version of the service, and the paths of its documentation."""
    return {
        "service": "ourvidz",
        "version": __version__,
        "health": "/health",
        "docs": "/docs",
        "openapi": "/openapi.json",
    }


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(401, 403, 503)},
)
def scrape(request: Request) -> Response:
    """Read the Prometheus metrics. Requests from other machines need the admin scope. If keys are configured,
    requests from this machine without one see no series with the name of a worker or a device."""
    keyring: Keyring = request.app.state.keyring
    if not _from_this_machine(request):
        audit.entry(request.scope).set_caller(keyring.authorize(request, frozenset({"admin"})))
    snapshot = _snapshot()
    if not is_informed(request):
        snapshot = replace(snapshot, metrics_counts=(), devices=())
    return Response(metrics.render(snapshot), media_type=metrics.CONTENT_TYPE)


def _reasons(online: list[Worker], uptime_s: float) -> list[Reason]:
    """Why the installation is degraded. Raises `WorkerUnavailable` when the ledger cannot be reached."""
    app = control.current()
    refusal = app.capacity.refusal()
    limits_s = {
        queue: max(
            app.settings.worker_grace_s,
            *(
                dispatch.HARD_LIMIT_FACTOR * dispatch.time_limit_s(row.name)
                for row in CATALOG.values()
                if row.queue == queue
            ),
        )
        for queue in QUEUES.values()
    }
    return degradations(
        app.ledger.vitals(),
        online,
        app.ledger.paused_queues(),
        uptime_s=uptime_s,
        stuck_after_s=limits_s,
        refusal=None if refusal is None else refusal.message,
        stuck_parts=[report.name(part.id) for report in memory.devices() for part in report.stuck],
    )


def _from_this_machine(request: Request) -> bool:
    """Whether a request comes from loopback and was not forwarded there by a proxy."""
    forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip"))
    return not forwarded and request.client is not None and request.client.host in ("127.0.0.1", "::1")


def _snapshot() -> metrics.Snapshot:
    ledger = control.current().ledger
    workers, vitals = ledger.workers(), ledger.vitals()
    return metrics.Snapshot(
        counts=ledger.counters(),
        depths={queue: ledger.queue_depth(queue) for queue in QUEUES.values()},
        paused=ledger.paused_queues(),
        workers=tuple((worker.family, worker.state) for worker in workers),
        failed_workers=tuple(w.family for w in workers if w.state != "offline" and is_failed(w)),
        outbox_pending=vitals.pending_callbacks,
        outbox_lag_s=vitals.outbox_lag_s,
        sweep_age_s=vitals.sweep_age_s,
        failed_phases=len(vitals.failed_phases),
        stuck_leases=vitals.stuck_leases,
        quarantined=vitals.quarantined,
        oldest_s={name: queue.oldest_s or 0.0 for name, queue in vitals.queues.items()},
        headroom=control.current().capacity.headroom(),
        metrics_counts=tuple(
            (worker.id, worker.metrics_counts)
            for worker in workers
            if worker.state != "offline" and worker.metrics_counts
        ),
        devices=tuple(_device_memory(report) for report in memory.devices()),
    )


def _device_memory(report: memory.DeviceReport) -> metrics.DeviceMemory:
    now = report.memory.now
    return metrics.DeviceMemory(
        device=report.id,
        total_mib=report.total_mib,
        free_mib=report.free_mib,
        budget_mib=report.budget_mib,
        parts=tuple((report.name(each.id), each.state, each.mib) for each in report.memory.residents),
        waits_s=tuple(now - wait.since for wait in report.memory.waits),
    )


def _device(workers: list[Worker]) -> str | None:
    """The device of the first worker that reported one."""
    return next((device for worker in workers if (device := _model_field(worker, "device"))), None)


def _model_field(worker: Worker, field: str) -> str | None:
    """A field of the first of a worker's models that reported it."""
    infos = worker.model_infos.values()
    return next((str(info[field]) for info in infos if info.get(field) is not None), None)


def _worker_summary(worker: Worker) -> WorkerSummary:
    return WorkerSummary(
        id=worker.id,
        queue=worker.queue,
        host=worker.host,
        pid=worker.pid,
        gpu=worker.gpu,
        state=worker.state,
        draining=worker.draining,
        error=worker.load_error,
        retry_at=worker.retry_at,
    )
