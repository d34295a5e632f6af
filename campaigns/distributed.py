"""One installation on several hosts: a shim, two workers, a Redis server with a replica, three sentinels."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from campaigns.installation import POLL_S, READY_S, WEBHOOK_SECRET
from campaigns.network import OUTSIDE, Network
from campaigns.receiver import CallbackReceiver
from campaigns.releases import ROOT
from campaigns.replication import Node, ReplicatedService
from campaigns.resource import Resource
from ourvidz.cli.supervisor import ProcessSpec, Supervisor
from ourvidz.ledger.store import Ledger

SHIM, WORKERS, SERVERS = "shim", ("worker1", "worker2"), ("server1", "server2")
HOSTS = (SHIM, *WORKERS, *SERVERS)
PORT, REDIS_PORT, SENTINEL_PORT = 8000, 6379, 26379
KEY = "key-of-the-distributed-campaign"
HEADERS = {"Authorization": f"Bearer {KEY}"}
LEASE_S = 5.0
DOWN_AFTER_MS = 2000
"""How long a primary must be silent until the sentinels replace it."""
SERVER_OPTIONS = (
    *("--appendonly", "yes", "--appendfsync", "always"),
    *("--repl-ping-replica-period", "1", "--repl-timeout", "10"),
    *("--min-replicas-to-write", "1", "--min-replicas-max-lag", "3"),
)
"""Those that `docs/how-to/production.md` recommends, with shorter times."""


class DistributedInstallation(Resource):
    """The processes of an installation, each on its host; use it as a context manager.

    Shim, io and keeper share the host `shim` with a sentinel; each Redis server has one beside it. Files are
    stored in one directory that all hosts see. Processes that end are started again; `exits` lists them. All
    methods must be called from the thread that entered.
    """

    def __init__(
        self, folder: Path, network: Network, receiver: CallbackReceiver, *, replica_acks: int
    ) -> None:
        super().__init__()
        self.assets = folder / "assets"
        self.network = network
        self.replica_acks = replica_acks
        self.shim = f"http://{network.address(SHIM)}:{PORT}"
        self.exits: list[str] = []
        self._folder = folder
        self._receiver = receiver
        self.service = ReplicatedService(
            folder / "redis",
            servers=[self._node(host, host, REDIS_PORT) for host in SERVERS],
            sentinels=[self._node(f"sentinel-{host}", host, SENTINEL_PORT) for host in (*SERVERS, SHIM)],
            options=SERVER_OPTIONS,
            down_after_ms=DOWN_AFTER_MS,
        )
        self._supervisor = Supervisor(self.exits.append, threading.Event())

    def _open(self) -> None:
        self.assets.mkdir(parents=True, exist_ok=True)
        self._cleanup.enter_context(self.service)
        self._cleanup.callback(self._supervisor.kill_all)
        self.ledger = Ledger(self.service.url)
        self._cleanup.callback(self.ledger.close)
        for name in ("web", "io", "keeper"):
            self._start(name, SHIM)
        for number, host in enumerate(WORKERS):
            self._start("sdxl", host, OURVIDZ_GPU=str(number), OURVIDZ_ALLOW_CPU="true")
        self.wait_until(self.is_ready, within_s=READY_S, what="the shim and both workers")

    def is_ready(self) -> bool:
        """Whether the shim answers, both workers have loaded their models, and the replica is connected."""
        try:
            is_live = requests.get(f"{self.shim}/health/live", timeout=2).status_code == 200
        except requests.RequestException:
            return False
        loaded = [
            worker
            for worker in self.ledger.workers()
            if worker.family == "sdxl" and worker.models and worker.state != "offline"
        ]
        return is_live and len(loaded) == len(WORKERS) and self.service.is_complete()

    def wait_until(self, read: Callable[[], Any], *, within_s: float, what: str) -> Any:
        """Call `read` until it returns a true value, and return that; meanwhile processes are supervised.
        Raises `TimeoutError` with `what`."""
        deadline = time.monotonic() + within_s
        while not (value := read()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {within_s:g} s for {what}")
            self.pause(POLL_S)
        return value

    def pause(self, seconds: float) -> None:
        """Wait; meanwhile processes are supervised."""
        deadline = time.monotonic() + seconds
        while True:
            self._supervisor.tick()
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, POLL_S))

    def logs(self) -> list[Path]:
        """The files to which the processes write."""
        return [*sorted(self._folder.glob("*.log")), *self.service.logs()]

    def _node(self, name: str, host: str, port: int) -> Node:
        return Node(name, self.network.address(host), port, self.network.enter(host))

    def _start(self, name: str, host: str, **variables: str) -> None:
        command = (*self.network.enter(host), sys.executable, "-P", "-m", "ourvidz.cli.main", "worker", name)
        label = f"{host}-{name}"
        env = self._environment() | variables
        self._supervisor.start(ProcessSpec(label, command, env, self._folder / f"{label}.log"))

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OURVIDZ_")}
        return inherited | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OURVIDZ_STATE_DIR": str(self._folder),
            "OURVIDZ_STORAGE_DIR": str(self.assets),
            "OURVIDZ_REDIS_URL": self.service.url,
            "OURVIDZ_REPLICA_ACKS": str(self.replica_acks),
            "OURVIDZ_HOST": self.network.address(SHIM),
            "OURVIDZ_PORTS": str(PORT),
            "OURVIDZ_API_KEYS": f"campaign:{KEY}:jobs",
            "OURVIDZ_MODELS": "campaigns.slow_models:build",
            "OURVIDZ_LEASE_S": str(LEASE_S),
            "OURVIDZ_SWEEP_S": "1",
            "OURVIDZ_CALLBACK_URL": self._receiver.url,
            "OURVIDZ_CALLBACK_ALLOW": self._receiver.host,
            "OURVIDZ_CALLBACK_TIMEOUT_S": "2",
            "OURVIDZ_WEBHOOK_SECRET": WEBHOOK_SECRET,
        }


def links() -> list[tuple[str, str]]:
    """Every pair of hosts that talk to each other."""
    clients = (SHIM, *WORKERS)
    return [
        *((client, server) for client in clients for server in SERVERS),
        (SERVERS[0], SERVERS[1]),
        *((SHIM, worker) for worker in WORKERS),
        (SHIM, OUTSIDE),
    ]
