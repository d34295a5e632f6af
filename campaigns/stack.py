"""One supervised installation, `ourvidz up`, beside a Redis server that the campaign can break."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil
import requests

from benchmarks.stack import WITHOUT_LIMITS
from campaigns.clock import ServerClock
from campaigns.installation import WEBHOOK_SECRET, wait_until
from campaigns.receiver import CallbackReceiver
from campaigns.redelivery import Redelivery
from campaigns.releases import ROOT
from campaigns.resource import Resource
from campaigns.storages import CampaignStorage, LocalFiles
from ourvidz.embedded_redis import PrivateServer, free_port
from ourvidz.ledger.store import Ledger
from ourvidz.subprocesses import dying_with_parent

READY_S = 120.0
STOP_S = 60.0
LEASE_S = 5.0
"""The lease of a job: a worker that is silent for longer loses it."""
DISK_BYTES = 64 * 1024 * 1024
"""Size of the file system of the stored files, where one can be mounted."""
SERVER_OPTIONS = ("--appendonly", "yes", "--appendfsync", "always")


class Stack(Resource):
    """`ourvidz up` with workers without weights, by default one of SDXL; use it as a context manager.

    Its Redis server is a process of the campaign, so that it can be frozen and restarted, on a clock that can
    be stepped where `libfaketime` is installed. Files are stored on a small file system of their own where
    one may be mounted, so that it can be filled, unless there is another `storage`.
    `variables` are added to the environment of its processes.
    """

    def __init__(
        self,
        folder: Path,
        receiver: CallbackReceiver,
        *,
        workers: Sequence[str] = ("sdxl",),
        storage: CampaignStorage | None = None,
        **variables: str,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.assets = folder / "assets"
        self.storage = storage or LocalFiles(self.assets)
        self.port = free_port()
        self.shim = f"http://127.0.0.1:{self.port}"
        self.clock = ServerClock(folder)
        self.server = PrivateServer(*SERVER_OPTIONS, binary=self.clock.server_binary(), folder=folder)
        self.can_fill_disk = False
        self._receiver = receiver
        self._workers = workers
        self._variables = variables
        self._up: subprocess.Popen[bytes] | None = None

    def _open(self) -> None:
        self.assets.mkdir(parents=True, exist_ok=True)
        self.can_fill_disk = isinstance(self.storage, LocalFiles) and self._mount_small_disk()
        self._cleanup.callback(self.server.kill)
        self.server.start()
        self._cleanup.callback(self.kill)
        self.ledger = Ledger(self.server.url)
        self._cleanup.callback(self.ledger.close)
        self.redelivery = Redelivery(self._environment())
        self._cleanup.callback(self.redelivery.close)
        self.start()

    def start(self) -> None:
        """Start `ourvidz up`, and wait until it is ready."""
        command = [sys.executable, "-P", "-m", "ourvidz.cli.main", "up", "--no-flower"]
        command += ["--workers", ",".join(self._workers)]
        with (self.folder / "up.log").open("ab") as log:
            self._up = subprocess.Popen(
                [*command, "--state-dir", str(self.folder), "--port", str(self.port)],
                env=self._environment(),
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,
                preexec_fn=dying_with_parent(signal.SIGTERM),
            )
        impatience = threading.Timer(READY_S, self._up.kill)
        impatience.start()
        assert self._up.stdout is not None
        try:
            line = self._up.stdout.readline()
        finally:
            impatience.cancel()
        if not line:
            raise TimeoutError(f"`ourvidz up` was not ready within {READY_S:g} s")
        json.loads(line)

    def stop(self) -> None:
        """Stop `ourvidz up` as a deploy does, and wait for its end."""
        if self._up is not None:
            self._up.send_signal(signal.SIGTERM)
            self._up.wait(STOP_S)
            self._close()

    def kill(self) -> None:
        """Kill `ourvidz up`; all of its processes end with it."""
        if self._up is not None:
            processes = self._descendants()
            self._up.kill()
            self._up.wait()
            self._close()
            psutil.wait_procs(processes, timeout=10)

    def process(self, name: str) -> psutil.Process | None:
        """The running process of this name; `wan child` is the pool child of the Wan worker, `child` that of
        the SDXL worker. None while it is being restarted."""
        process_name, _, child = ("sdxl child" if name == "child" else name).partition(" ")
        for process in self._children():
            try:
                command = process.cmdline()
                if "worker" in command and command[command.index("worker") + 1] == process_name:
                    return _pool_child(process) if child else process
            except (psutil.NoSuchProcess, IndexError):
                continue
        return None

    def is_live(self) -> bool:
        """Whether the shim answers."""
        try:
            return requests.get(f"{self.shim}/health/live", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def wait_until_live(self) -> None:
        """Wait until the shim answers."""
        wait_until(self.is_live, within_s=READY_S, what="the shim")

    def logs(self) -> list[Path]:
        """The files to which the processes write."""
        return [self.folder / "up.log", *sorted((self.folder / "logs").glob("*.log"))]

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OURVIDZ_")}
        return inherited | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OURVIDZ_REDIS_URL": self.server.url,
            **WITHOUT_LIMITS,
            **self.storage.environment(),
            "OURVIDZ_MODELS": "campaigns.slow_models:build",
            "OURVIDZ_LEASE_S": str(LEASE_S),
            "OURVIDZ_SWEEP_S": "1",
            "OURVIDZ_CALLBACK_URL": self._receiver.url,
            "OURVIDZ_CALLBACK_ALLOW": self._receiver.host,
            "OURVIDZ_CALLBACK_TIMEOUT_S": "2",
            "OURVIDZ_WEBHOOK_SECRET": WEBHOOK_SECRET,
            **self._variables,
        }

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._up.pid).children() if self._up else []
        except psutil.NoSuchProcess:
            return []

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._up.pid).children(recursive=True) if self._up else []
        except psutil.NoSuchProcess:
            return []

    def _close(self) -> None:
        if self._up is not None and self._up.stdout is not None:
            self._up.stdout.close()
        self._up = None

    def _mount_small_disk(self) -> bool:
        """Mount a file system of `DISK_BYTES` for the stored files. False where that is forbidden."""
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.assets)]
        try:
            if subprocess.run(mount, capture_output=True).returncode != 0:
                return False
        except FileNotFoundError:
            return False
        self._cleanup.callback(subprocess.run, ["umount", "-l", str(self.assets)], capture_output=True)
        return True


def _pool_child(worker: psutil.Process) -> psutil.Process | None:
    """The pool child of a worker, which has other children too; None while it is being restarted."""
    for child in worker.children():
        if any(name in word for word in child.cmdline() for name in ("spawn_main", "ourvidz import child")):
            return child
    return None
