"""The peers: how each is installed, started and asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Queue:
    """A job queue on Redis. `script` is its module in `systems`; requirements are pinned for the venv."""

    name: str
    script: str
    requirements: tuple[str, ...]
    worker: tuple[str, ...] = ()
    """Arguments of `python` that start the worker; empty for `-m SCRIPT`."""


@dataclass(frozen=True, slots=True)
class Server:
    """An HTTP server that runs a model in its own process or a child, without a queue on disk.

    `clients` ask at the same time; `path` and `body` are those of a request; `started` reads the Unix time at
    which the no-op ran from an answer.
    """

    name: str
    script: str
    requirements: tuple[str, ...]
    path: str
    body: dict[str, Any]
    started: Callable[[dict[str, Any]], float]
    clients: int = 8
    env: tuple[tuple[str, str], ...] = ()
    worker: tuple[str, ...] = ()
    """Arguments of `python` that start the server; empty for `-m SCRIPT`. `{port}` is replaced."""


Peer = Queue | Server

PEERS: dict[str, Peer] = {
    "celery": Queue("Celery", "celery_noop", ("celery[redis]==5.7.0",)),
    "rq": Queue("RQ (SimpleWorker)", "rq_noop", ("rq==3.0.0",)),
    "dramatiq": Queue("dramatiq", "dramatiq_noop", ("dramatiq[redis]==2.2.1",)),
    "arq": Queue("arq", "arq_noop", ("arq==0.28.0",)),
    "taskiq": Queue(
        "taskiq",
        "taskiq_noop",
        ("taskiq==0.13.0", "taskiq-redis==1.2.4"),
        ("-m", "taskiq", "worker", "--workers", "1", "--log-level", "ERROR", "taskiq_noop:broker"),
    ),
    "polling": Queue("2 s polling loop", "polling", ("redis==8.1.0",)),
    "litserve": Server(
        "LitServe",
        "litserve_noop",
        ("litserve==0.2.19",),
        "/predict",
        {},
        lambda answer: float(answer["started"]),
    ),
    "runpod": Server(
        "RunPod's local API",
        "runpod_noop",
        ("runpod==1.12.0",),
        "/runsync",
        {"input": {"n": 1}},
        lambda answer: float(answer["output"]["started"]),
        worker=(
            "-m",
            "runpod_noop",
            "--rp_serve_api",
            "--rp_api_host",
            "127.0.0.1",
            "--rp_api_port",
            "{port}",
        ),
    ),
    "cog": Server(
        "cog's server",
        "cog_noop",
        ("cog==0.23.1",),
        "/predictions",
        {"input": {}},
        lambda answer: float(answer["output"]),
        clients=1,  # it refuses a second request at the same time with 409
        env=(("COG_PREDICT_TYPE_STUB", "cog_noop.py:Predictor"),),
        worker=("-m", "cog.server.http", "--host", "127.0.0.1"),
    ),
}
"""All peers, by the name that `--peers` takes."""
