"""The start script of a RunPod pod with real processes, and paced models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from ourvidz.cli.shim import Shim
from ourvidz.embedded_redis import find_server, free_port
from ourvidz.settings import environment
from tests.system.conftest import ROOT, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

SCRIPT = ROOT / "deploy/runpod/start.sh"
KEY = "a-key-of-this-pod"
WITHIN_S = 60.0


class Functions:
    """A Supabase project's edge functions: accepts every request, and keeps it by the function's name."""

    def __init__(self) -> None:
        received = self.received = []  # type: list[tuple[str, dict[str, Any]]]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((self.path.rpartition("/")[2], json.loads(body)))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                """Write no access log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def bodies(self, function: str) -> list[dict[str, Any]]:
        return [body for name, body in list(self.received) if name == function]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def functions() -> Iterator[Functions]:
    """The functions of a project."""
    started = Functions()
    yield started
    started.close()


def test_a_pod_registers_runs_jobs_survives_a_kill_and_leaves(functions: Functions, tmp_path: Path) -> None:
    """From the first start to the last signal, with what a pod has: a volume and its environment."""
    program, port, state = tmp_path / "bin/ourvidz", free_port(), tmp_path / "state"
    program.parent.mkdir()
    state.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m ourvidz.cli.main "$@"\n')
    program.chmod(0o755)
    log = (tmp_path / "log").open("wb")
    pod = subprocess.Popen(
        [str(SCRIPT)],
        env=environment(
            PATH=f"{program.parent}:{os.environ['PATH']}",
            PYTHONPATH=str(ROOT),
            POD_PROCESSES="web io keeper sdxl",
            POD_VOLUME=str(tmp_path / "volume"),
            POD_REDIS_PORT=str(free_port()),
            POD_PULL="no",
            REDIS_SERVER_BIN=str(find_server(None)),
            OURVIDZ_REDIS_URL=None,
            OURVIDZ_PROFILE="production",
            OURVIDZ_MODELS="tests.system.paced_models:build",
            OURVIDZ_ALLOW_CPU="true",
            OURVIDZ_STATE_DIR=str(state),
            OURVIDZ_PORTS=str(port),
            OURVIDZ_HOST="127.0.0.1",
            OURVIDZ_API_KEYS=f"backend:{KEY}:jobs+admin",
            SUPABASE_URL=functions.url,
            RUNPOD_POD_ID="k2x9",
        ),
        cwd=tmp_path,
        stdout=log,
        stderr=log,
    )
    processes: list[psutil.Process] = []
    try:
        shim = Shim(f"http://127.0.0.1:{port}", KEY)
        wait_for(shim.is_ready, within_s=WITHIN_S, why=(tmp_path / "log").read_text())
        processes = psutil.Process(pod.pid).children(recursive=True)
        wait_for(lambda: functions.bodies("update-worker-url"), within_s=WITHIN_S, why="not registered")
        registered = functions.bodies("update-worker-url")[0]
        assert registered["worker_url"] == f"https://k2x9-{port}.proxy.runpod.net"
        assert (registered["worker_type"], registered["status"]) == ("sdxl", "registered")

        payload = {"type": "sdxl_image_fast", "prompt": "a red circle", "user_id": "ada"}
        shim.post("/jobs", {**payload, "id": "first", "config": {"resolution": "64x64"}})
        wait_for(lambda: shim.job("first")["status"] == "processing", within_s=WITHIN_S, why="not claimed")
        (worker,) = (one for one in processes if one.cmdline()[-2:] == ["worker", "sdxl"])
        assert shim.get("/autoscale/sdxl_queue")["busy"] == 1
        worker.kill()
        (state / "finish").touch()
        wait_for(lambda: shim.job("first")["status"] == "completed", within_s=WITHIN_S, why="it is lost")
        assert (tmp_path / "volume/ourvidz/redis/appendonlydir").is_dir()

        processes = psutil.Process(pod.pid).children(recursive=True)
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(WITHIN_S) == 0
        terminal = [body for body in functions.bodies("job-callback") if body["status"] == "completed"]
        assert [body["job_id"] for body in terminal] == ["first"]
        assert functions.bodies("update-worker-url")[-1]["status"] == "gone"
        _, left = psutil.wait_procs(processes, timeout=10)
        assert left == []
    finally:
        for process in processes:
            if process.is_running():
                process.kill()
        pod.kill()
        pod.wait()
        log.close()
