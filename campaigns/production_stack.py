"""An installation as in production: units of systemd on two hosts, sentinels, keys, a storage on a server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil

from campaigns.deno_receiver import DenoReceiver
from campaigns.installation import WEBHOOK_SECRET, wait_until
from campaigns.releases import ROOT
from campaigns.replication import ReplicatedService, local_node
from campaigns.resource import Resource
from campaigns.storages import RemoteFiles
from campaigns.units import Unit
from ourvidz.cli.shim import Shim, ShimError
from ourvidz.embedded_redis import free_port
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Worker
from ourvidz.subprocesses import dying_with_parent

UNIT = ROOT / "deploy" / "systemd" / "ourvidz-worker@.service"
PROGRAM = (sys.executable, "-P", "-m", "ourvidz.cli.main")
CHECKPOINTS = ROOT / "ourvidz" / "checkpoints"
SERVICE_KEY = "sb_secret_production_campaign"
CALLBACK_SECRET = "callback-secret-of-the-campaign"
API_KEY = "key-of-the-backend"
REDIS_PASSWORD = "password-of-the-primary"
READY_S = 240.0
RESTART_S = 2.0
"""`RestartSec` of the unit."""
HELPERS = ("web", "io", "keeper")
WORKERS = {
    "host1-sdxl": ("sdxl", "1"),
    "host1-wan": ("wan", "1"),
    "host1-chat": ("chat", "1"),
    "host2-sdxl": ("sdxl", "2"),
    "host2-wan": ("wan", "2"),
}
"""Instance → its family, and the number that stands for its host in its worker id (`sdxl@…-gpu1`)."""


class ProductionStack(Resource):
    """Every process of the installation; use it as a context manager.

    The profile is `production`, its checkpoints are the tiny ones. Redis is one primary behind one sentinel.
    Entering raises `NotInstalled` without Deno.
    """

    def __init__(self, folder: Path, storage: RemoteFiles) -> None:
        super().__init__()
        self.folder = folder
        self.storage = storage
        self.port = free_port()
        self.receiver = DenoReceiver(
            folder / "receiver",
            SUPABASE_SERVICE_KEY=self._service_key(),
            JOB_CALLBACK_SECRET=CALLBACK_SECRET,
            OURVIDZ_WEBHOOK_SECRET=WEBHOOK_SECRET,
        )
        self.service = ReplicatedService(
            folder / "redis",
            servers=[local_node("primary", REDIS_PASSWORD)],
            sentinels=[local_node("sentinel")],
            options=("--appendonly", "yes", "--maxmemory-policy", "noeviction"),
        )
        self._units: dict[str, tuple[Unit, subprocess.Popen[bytes]]] = {}

    @property
    def url(self) -> str:
        """The URL of the shim."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def shim(self) -> Shim:
        """A client with the key of the backend."""
        return Shim(self.url, API_KEY)

    def _open(self) -> None:
        self._cleanup.enter_context(self.receiver)
        self._cleanup.enter_context(self.service)
        self._cleanup.callback(self._kill_all)
        self.ledger = Ledger(self.service.url)
        self._cleanup.callback(self.ledger.close)
        for name in (*HELPERS, *WORKERS):
            self.start(name)
        wait_until(self._is_live, within_s=READY_S, what="the shim")
        for name in WORKERS:
            self.wait_until_ready(name)

    def start(self, name: str) -> None:
        """Start a unit, as systemd does."""
        family, host = WORKERS.get(name, (name, ""))
        overrides = {"PROCESS": family, **({"OURVIDZ_GPU": host} if host else {})}
        unit = Unit.load(UNIT, name, overrides=overrides)
        unit = replace(unit, command=(*PROGRAM, *unit.command[1:]))
        # The settings of the campaign replace the directories of the unit.
        env = {**unit.environment, **self.environment()}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                unit.command,
                env=env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=dying_with_parent(signal.SIGKILL),
            )
        self._units[name] = (unit, process)

    def kill(self, name: str) -> None:
        """Kill every process of a unit, as a loss of its host does."""
        _, process = self._units[name]
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()

    def deploy(self, name: str) -> bool:
        """Restart a unit as `systemctl restart` does. Returns whether it had to be killed."""
        unit, process = self._units[name]
        killed = unit.stop(process)
        self.start(name)
        return killed

    def worker(self, name: str) -> Worker | None:
        """The record of a worker, if the running process of the unit has written it."""
        family, host = WORKERS[name]
        children = {child.pid for child in psutil.Process(self._units[name][1].pid).children()}
        for worker in self.ledger.workers():
            if worker.family == family and worker.id.endswith(f"-gpu{host}") and worker.pid in children:
                return worker
        return None

    def wait_until_ready(self, name: str) -> None:
        """Wait until the worker of a unit has loaded its models. One that ends is started again."""

        def ready() -> bool:
            if self._units[name][1].poll() is not None:
                time.sleep(RESTART_S)
                self.start(name)
            worker = self.worker(name)
            return worker is not None and bool(worker.models) and worker.state in ("idle", "busy")

        wait_until(ready, within_s=READY_S, what=f"{name} to load its models")

    def run_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `ourvidz` on another machine: it has the URL of the shim and the key, and nothing else."""
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "OURVIDZ_STATE_DIR": str(self.folder / "elsewhere"),
            "OURVIDZ_URL": self.url,
            "OURVIDZ_API_KEY": API_KEY,
        }
        command = (*PROGRAM, *arguments)
        return subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=900)

    def environment(self) -> dict[str, str]:
        """The file `/etc/ourvidz/ourvidz.env`, the same on all hosts."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OURVIDZ_STATE_DIR": str(self.folder),
            "OURVIDZ_PROFILE": "production",
            "OURVIDZ_REDIS_URL": self.service.url,
            "OURVIDZ_SDXL_MODEL": str(CHECKPOINTS / "tiny-sdxl"),
            "OURVIDZ_WAN_MODEL": str(CHECKPOINTS / "tiny-wan"),
            "OURVIDZ_QWEN_MODEL": str(CHECKPOINTS / "tiny-qwen"),
            "OURVIDZ_ALLOW_CPU": "true",
            "OURVIDZ_PORTS": str(self.port),
            "OURVIDZ_PUBLIC_URL": self.url,
            "OURVIDZ_API_KEYS": f"backend:{API_KEY}:jobs+chat,ops:key-of-operators:admin",
            "OURVIDZ_CALLBACK_URL": self.receiver.url,
            "JOB_CALLBACK_SECRET": CALLBACK_SECRET,
            "OURVIDZ_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "OURVIDZ_LOG_FORMAT": "json",
            "SUPABASE_SERVICE_KEY": SERVICE_KEY,
            **self.storage.environment(),
        }

    def logs(self) -> list[Path]:
        """The files to which the units write."""
        return sorted(self.folder.glob("*.log"))

    def _service_key(self) -> str:
        return self.storage.environment().get("SUPABASE_SERVICE_KEY", SERVICE_KEY)

    def _is_live(self) -> bool:
        try:
            return bool(self.shim.get("/health/live"))
        except (ShimError, json.JSONDecodeError):
            return False

    def _kill_all(self) -> None:
        for _, process in self._units.values():
            try:
                children = psutil.Process(process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                continue
            for each in (*children, process):
                each.kill()
            process.wait()
