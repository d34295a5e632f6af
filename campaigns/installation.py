"""One installation whose processes may be of different releases."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from benchmarks.stack import WITHOUT_LIMITS
from campaigns.receiver import CallbackReceiver
from campaigns.releases import Release
from campaigns.resource import Resource
from ourvidz.embedded_redis import PrivateServer, find_server, free_port
from ourvidz.ledger.store import Ledger
from ourvidz.subprocesses import dying_with_parent

WEBHOOK_SECRET = "whsec_Y2FtcGFpZ25zLW9mLW91cnZpZHotd29ya2Vy"
READY_S = 90.0
STOP_S = 60.0
"""A worker of an earlier release may wait 30 s for a result that came in just when it was told to stop."""
POLL_S = 0.05
OMITTED = frozenset({"wan", "chat", "flower"})
"""Processes of the `Procfile` that a campaign does not run."""


def wait_until(read: Callable[[], Any], *, within_s: float, what: str) -> Any:
    """Call `read` until it returns a true value, and return that. Raises `TimeoutError` with `what`."""
    deadline = time.monotonic() + within_s
    while True:
        if value := read():
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {within_s:g} s for {what}")
        time.sleep(POLL_S)


class Installation(Resource):
    """A Redis server, and the processes of the `Procfile` with null models; use it as a context manager.

    Groups of processes are started and replaced separately, each from a release of its own. `helpers` are all
    processes but the shim (`web`) and the worker (`sdxl`).
    """

    def __init__(self, folder: Path, receiver: CallbackReceiver) -> None:
        super().__init__()
        self.folder = folder
        self.assets = folder / "assets"
        self.shim = f"http://127.0.0.1:{free_port()}"
        self._receiver = receiver
        self._server = PrivateServer("--appendonly", "yes", binary=find_server(None), folder=folder)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._cleanup.callback(self._server.kill)
        self._server.start()
        self._cleanup.callback(self._kill_all)
        self.ledger = Ledger(self._server.url)
        self._cleanup.callback(self.ledger.close)

    def replace(self, group: str, release: Release) -> None:
        """Stop the processes of a group (`web`, `sdxl`, `helpers`), as a deploy does, and start those of a
        release. Returns when the new shim or worker is ready."""
        for name in [name for name in self._processes if _group(name) == group]:
            self._stop(name)
        for name in release.processes():
            if name not in OMITTED and _group(name) == group:
                self._processes[name] = self._spawn(name, release)
        if group == "web":
            wait_until(self._shim_is_live, within_s=READY_S, what=f"the {release.name} shim")
        if group == "sdxl":
            pid = self._processes["sdxl"].pid
            wait_until(
                lambda: self._worker_is_ready(pid), within_s=READY_S, what=f"the {release.name} worker"
            )

    def logs(self) -> list[Path]:
        """The files to which the processes write."""
        return sorted(self.folder.glob("*.log"))

    def _spawn(self, name: str, release: Release) -> subprocess.Popen[bytes]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("OURVIDZ_")} | {
            "PYTHONPATH": str(release.root),
            "PYTHONUNBUFFERED": "1",
            "OURVIDZ_STATE_DIR": str(self.folder),
            "OURVIDZ_STORAGE_DIR": str(self.assets),
            "OURVIDZ_REDIS_URL": self._server.url,
            "OURVIDZ_PORTS": self.shim.rpartition(":")[2],
            "OURVIDZ_MODELS": "benchmarks.null_models:build",
            "OURVIDZ_CALLBACK_URL": self._receiver.url,
            "OURVIDZ_CALLBACK_ALLOW": self._receiver.host,
            "OURVIDZ_WEBHOOK_SECRET": WEBHOOK_SECRET,
            **WITHOUT_LIMITS,
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            log.write(f"--- {release.name} release\n".encode())
            log.flush()
            return subprocess.Popen(
                (sys.executable, "-P", "-m", "ourvidz.cli.main", "worker", name),
                env=env,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=dying_with_parent(signal.SIGKILL),
            )

    def _stop(self, name: str) -> None:
        """Ask a process to drain and exit, and wait for it."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise TimeoutError(f"{name} did not stop within {STOP_S:g} s of SIGTERM") from None

    def _kill_all(self) -> None:
        for process in self._processes.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            finally:
                process.wait()

    def _shim_is_live(self) -> bool:
        try:
            return requests.get(f"{self.shim}/health/live", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def _worker_is_ready(self, parent: int) -> bool:
        """Whether the pool child of a worker with this parent process has loaded its models."""
        return any(
            worker.family == "sdxl" and worker.state in ("idle", "busy") and _parent_of(worker.pid) == parent
            for worker in self.ledger.workers()
        )


def _group(name: str) -> str:
    return name if name in ("web", "sdxl") else "helpers"


def _parent_of(pid: int) -> int | None:
    """The parent of a process; None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None
