"""How the installation is: health, status, metrics. Open, because probes and balancers carry no keys."""

from __future__ import annotations

import time
from typing import Any, Literal, get_args

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from ourvidz import __version__, metrics
from ourvidz.errors import WorkerUnavailable
from ourvidz.jobs.catalog import QUEUES, QualityTier, of_family
from ourvidz.ledger.record import Worker
from ourvidz.web import audit
from ourvidz.web.auth import Keyring
from ourvidz.web.problems import documented
from ourvidz.wiring import control

router = APIRouter(tags=["health"])

I2I_PIPELINES = {"sdxl": "SDXLPipeline", "wan": "WanPipeline"}
"""The pipeline class of each family that takes reference images; this process imports no pipelines."""
OUTBOX_COUNTED = 1000
"""Pending callbacks are counted up to here."""


class WorkerSeen(BaseModel):
    """One worker as it said of itself."""

    id: str
    queue: str
    host: str
    pid: int
    gpu: str | None
    state: str
    draining: bool


class Health(BaseModel):
    """`degraded` means that jobs are not taken, or that nobody would run them. `model_loaded` is SDXL's."""

    status: Literal["healthy", "degraded"]
    model_loaded: bool
    wan_model_loaded: bool
    qwen_model_loaded: bool
    device: str | None
    uptime_s: float
    version: str
    workers: list[WorkerSeen]


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


class ModelSeen(BaseModel):
    """What one worker said of its model when it had loaded it. Sizes are pixels, memory is MiB."""

    family: str
    queue: str
    state: str
    info: dict[str, Any]


class ModelInfo(BaseModel):
    """The models of the workers that are here, one row each."""

    models: list[ModelSeen]


@router.get("/health")
def health(request: Request) -> Health:
    """How everything is. With keys configured, who the workers are is shown to holders of one only."""
    try:
        workers = _here()
    except WorkerUnavailable:
        workers = None
    at_work = [w for w in workers or [] if w.family in QUEUES]
    loaded = {model for worker in at_work for model in worker.models}
    ring: Keyring = request.app.state.keyring
    trusted = ring.empty or ring.identify(request.headers) is not None
    return Health(
        status="healthy" if at_work else "degraded",
        model_loaded="sdxl" in loaded,
        wan_model_loaded="wan" in loaded,
        qwen_model_loaded="chat" in loaded,
        device=next((device for worker in at_work if (device := _loaded(worker, "device"))), None),
        uptime_s=round(time.monotonic() - request.app.state.started_at, 1),
        version=__version__,
        workers=[_seen(worker) for worker in workers or []] if trusted else [],
    )


@router.get("/health/live")
async def live() -> dict[str, str]:
    """This process answers, also while its threads wait for a server that hangs."""
    return {"status": "alive"}


@router.get("/health/ready", responses=documented(503))
def ready() -> dict[str, str]:
    """Jobs are taken and somebody runs them: the broker and a worker with its models loaded answer."""
    control.current().ledger.ping()
    if not any(w.family in QUEUES and w.state != "starting" and w.models for w in _here()):
        raise WorkerUnavailable("No worker is ready.")
    return {"status": "ready"}


@router.get("/status", responses=documented(422, 503))
def status(worker_type: Literal["sdxl", "wan", "chat"] = "sdxl") -> Status:
    """What the image worker can do, or the video worker, or the chat worker."""
    rows = [row for row in of_family(worker_type) if row.kind != "admin"]
    names = (_loaded(w, "name") for w in _here() if w.family == worker_type)
    chosen = control.current().settings
    models = {"sdxl": chosen.sdxl_model, "wan": chosen.wan_model, "chat": chosen.qwen_model}
    configured = models[worker_type]
    return Status(
        worker_type=worker_type,
        model=next((name for name in names if name), configured.stem if configured else "not loaded"),
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


@router.get("/model/info", responses=documented(503))
def model_info() -> ModelInfo:
    """Which models are loaded, and how."""
    return ModelInfo(
        models=[
            ModelSeen(family=worker.family, queue=worker.queue, state=worker.state, info=said)
            for worker in _here()
            for said in _said(worker)
        ]
    )


@router.get("/")
def root() -> dict[str, str]:
    """What this is and where to read on."""
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
    """The numbers for Prometheus. Open to this machine; from elsewhere it needs the admin scope."""
    ring: Keyring = request.app.state.keyring
    if not _from_this_machine(request):
        audit.entry(request.scope).who = ring.admit(request, frozenset({"admin"}))
    return Response(metrics.render(_snapshot()), media_type=metrics.CONTENT_TYPE)


def _from_this_machine(request: Request) -> bool:
    """Whether nobody forwarded this request here: behind a proxy everyone seems to be on this machine."""
    forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip"))
    return not forwarded and request.client is not None and request.client.host in ("127.0.0.1", "::1")


def _snapshot() -> metrics.Snapshot:
    ledger = control.current().ledger
    return metrics.Snapshot(
        counts=ledger.counts(),
        depths={queue: ledger.depth(queue) for queue in QUEUES.values()},
        paused=ledger.paused(),
        workers=tuple((worker.family, worker.state) for worker in ledger.workers()),
        outbox_pending=len(ledger.letters("pending", OUTBOX_COUNTED)),
    )


def _here() -> list[Worker]:
    return [worker for worker in control.current().ledger.workers() if worker.state != "offline"]


def _loaded(worker: Worker, what: str) -> str | None:
    """What a worker said of the first of its models that it said it of."""
    found = [info[what] for info in _said(worker) if info.get(what) is not None]
    return str(found[0]) if found else None


def _said(worker: Worker) -> list[dict[str, Any]]:
    """What a worker said of each of its models when it had loaded them."""
    return list(worker.detail.get("info", {}).values())


def _seen(worker: Worker) -> WorkerSeen:
    return WorkerSeen(
        id=worker.id,
        queue=worker.queue,
        host=worker.host,
        pid=worker.pid,
        gpu=worker.gpu,
        state=worker.state,
        draining=worker.draining,
    )
