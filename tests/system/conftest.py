"""Fixtures: a whole `ourvidz up` as a process, with a client for it, and a headless browser."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from ourvidz.cli.shim import TERMINAL_STATUSES, Shim
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Record
from ourvidz.settings import environment

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
READY_S = 90.0
STOP_S = 30.0
JOB_S = 60.0
TAIL_LINES = 40
POLL_S = 0.05
USER = "system-tests"


def wait_for(read: Callable[[], Any], *, within_s: float, why: str) -> Any:
    """Call `read` until it returns a true value, and return that. Fails with `why` after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        value = read()
        if value:
            return value
        assert time.monotonic() < deadline, why
        time.sleep(POLL_S)


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Stack:
    """One running `ourvidz up`, and a client for its shim, ledger and processes."""

    def __init__(self, state_dir: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.state_dir = state_dir
        state_dir.mkdir(parents=True, exist_ok=True)
        started_at = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ourvidz.cli.main", "up", "--state-dir", str(state_dir), *arguments],
            stdout=subprocess.PIPE,
            stderr=(state_dir / "up.err").open("ab"),
            env=environment(PYTHONPATH=str(ROOT), **(env or {})),
            cwd=state_dir,
            process_group=0,
        )
        self.ready = self._await_ready()
        self.ready_after_s = time.monotonic() - started_at
        self.shim: str = self.ready["shim"]
        self.redis_url: str = self.ready["redis"]
        self.client = Shim(self.shim, self.ready["api_key"])

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name, as `up` printed them; `pid_of` has those of restarted processes."""
        return dict(self.ready["pids"])

    def get(self, path: str, **query: Any) -> requests.Response:
        """The response to a GET."""
        return requests.get(self.shim + path, params=query, timeout=10)

    def post(self, path: str, document: Any = None, **more: Any) -> requests.Response:
        """The response to a POST of a JSON document."""
        return requests.post(self.shim + path, json=document, timeout=10, **more)

    def payload(self, job_id: str, **fields: Any) -> dict[str, Any]:
        """The payload of a small image job; `fields` are added or replaced."""
        config = {"width": 64, "height": 64, "seed": 1}
        job = {"id": job_id, "type": "sdxl_image_fast", "prompt": "a red circle on blue", "user_id": USER}
        return {**job, "config": config, **fields}

    def submit(self, job_id: str, **fields: Any) -> dict[str, Any]:
        """Submit a small image job and return the response document; `fields` as in `payload`."""
        answer = self.post("/jobs", self.payload(job_id, **fields))
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def job(self, job_id: str) -> dict[str, Any]:
        """The current state of a job."""
        return self.client.job(job_id)

    def wait_done(self, job_id: str, within_s: float = JOB_S) -> dict[str, Any]:
        """Follow a job's event stream to its end; return the job's state."""
        follower = ThreadPoolExecutor(1)
        try:
            follower.submit(lambda: list(self.client.events(job_id))).result(within_s)
        except TimeoutError:
            raise AssertionError(f"{job_id} did not end within {within_s:g} s: {self.job(job_id)}") from None
        finally:
            follower.shutdown(wait=False)
        job = self.job(job_id)
        assert job["status"] in TERMINAL_STATUSES, job
        return job

    @staticmethod
    def wait_for(read: Callable[[], Any], why: str, within_s: float = 10.0) -> Any:
        """Call the function `wait_for`; waits for ten seconds by default."""
        return wait_for(read, within_s=within_s, why=why)

    def inbox(self, job_id: str | None = None) -> list[dict[str, Any]]:
        """The received callbacks, of one job or of all, oldest first."""
        return list(self.client.get("/inbox", job_id=job_id, limit=1000)["items"])

    def wait_callbacks(self, job_id: str, *statuses: str, within_s: float = 15) -> list[dict[str, Any]]:
        """Wait until exactly these statuses were received for a job, in this order; return the callbacks."""
        wait_for(
            lambda: [item["payload"]["status"] for item in self.inbox(job_id)] == list(statuses),
            within_s=within_s,
            why=f"{job_id}: {[item['payload']['status'] for item in self.inbox(job_id)]}, not {statuses}",
        )
        return self.inbox(job_id)

    def record(self, job_id: str) -> Record:
        """The ledger's record of a job."""
        record = self.ledger.get(job_id)
        assert record is not None, f"no record of {job_id}"
        return record

    @cached_property
    def ledger(self) -> Ledger:
        """A connection to the ledger of the stack."""
        return Ledger(self.redis_url)

    def pool_child(self, family: str = "sdxl") -> int:
        """The process id of a worker's pool child, which has the pipeline."""
        workers = [worker for worker in self.ledger.workers() if worker.family == family]
        return workers[0].pid

    def pid_of(self, name: str) -> int | None:
        """The current process id of a part of the stack, named as in `pids`; None if it is not running."""
        for child in psutil.Process(self.process.pid).children():
            command = child.cmdline()
            matches = (
                command[-1] == name
                or name in command[3:8]
                or (name == "redis" and "server" in command[:1][0])
            )
            if command and matches and child.status() != psutil.STATUS_ZOMBIE:
                return int(child.pid)
        return None

    def kill(self, name: str, signum: int = signal.SIGKILL) -> int:
        """Send a signal to one part of the stack; return its process id."""
        pid = self.pid_of(name)
        assert pid is not None, f"no {name} process"
        os.kill(pid, signum)
        return pid

    @staticmethod
    def run_up(state_dir: Path) -> subprocess.CompletedProcess[str]:
        """Run a second `up` on a state directory that is in use, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "ourvidz.cli.main", "up", "--state-dir", str(state_dir), "--no-flower"],
            env=environment(PYTHONPATH=str(ROOT)),
            cwd=state_dir,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def processes(self) -> list[psutil.Process]:
        """Every process of the stack, `up` first."""
        up = psutil.Process(self.process.pid)
        return [up, *up.children(recursive=True)]

    @staticmethod
    def still_running(processes: list[psutil.Process], *, within_s: float) -> list[psutil.Process]:
        """Those of `processes` that are running after `within_s`. A zombie is not: its new parent, the
        machine's first process, may take long to reap it."""
        alive = psutil.wait_procs(processes, timeout=within_s)[1]
        return [process for process in alive if _is_running(process)]

    def stop(self, within_s: float = STOP_S) -> int:
        """Send SIGTERM to `up`, wait, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"`up` was still there {within_s:g} s after SIGTERM\n{self.tails()}"
            ) from None

    def destroy(self) -> None:
        """Kill every process of the stack that is left."""
        try:
            processes = self.processes()
        except psutil.NoSuchProcess:
            processes = []
        for process in reversed(processes):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def tails(self) -> str:
        """The last lines of every log."""
        logs = [self.state_dir / "up.err", *sorted((self.state_dir / "logs").glob("*.log"))]
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
            for log in logs
            if log.exists()
        )

    def _await_ready(self) -> dict[str, Any]:
        timeout = threading.Timer(READY_S, self.process.kill)
        timeout.start()
        assert self.process.stdout is not None
        try:
            line = self.process.stdout.readline()
        finally:
            timeout.cancel()
        if not line:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"`up` did not become ready\n{self.tails()}")
        ready: dict[str, Any] = json.loads(line)
        return ready


@contextmanager
def stack(state_dir: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Stack]:
    """Run `ourvidz up` without Flower and with SDXL only. Failures get the ends of the logs as a note.

    `arguments` are those of `up` (`--flower` brings Flower back, `--workers wan` replaces SDXL), `env`
    changes its environment.
    """
    running = Stack(state_dir, "--no-flower", "--workers", "sdxl", *arguments, env=env)
    try:
        yield running
    except BaseException as error:
        error.add_note(running.tails())
        raise
    finally:
        running.destroy()


@pytest.fixture(name="stack")
def start_stack(tmp_path: Path) -> Callable[..., Any]:
    """Run stacks in this test's directory: `with stack(*arguments, env=…) as running`."""

    def start(*arguments: str, env: dict[str, str] | None = None) -> Any:
        return stack(tmp_path / "state", *arguments, env=env)

    return start


@pytest.fixture(scope="module")
def stacks() -> Callable[..., Any]:
    """Run stacks in a given directory: `with stacks(state_dir, *arguments, env=…) as running`."""
    return stack


@pytest.fixture(scope="module")
def waiting() -> Callable[..., Any]:
    """The function `wait_for`."""
    return wait_for


def missing_browser() -> str | None:
    """What is missing for browser tests, with the command that installs it; None if nothing is missing."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed (pip install 'ourvidz[dev]')"
    return None if chromium_binary() else "Chromium is not installed: run scripts/install-chromium"


def chromium_binary() -> str | None:
    """The path of Chromium: `$CHROMIUM_BIN`, else the one on the search path."""
    paths = (shutil.which(name) for name in BROWSERS)
    return os.environ.get("CHROMIUM_BIN") or next(filter(None, paths), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright. Without one the test is skipped, under CI it fails."""
    missing = missing_browser()
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{missing}: nothing is played in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers seldom have; the pages are our own.
        opened = playwright.chromium.launch(executable_path=chromium_binary(), args=["--no-sandbox"])
        yield opened
        opened.close()
