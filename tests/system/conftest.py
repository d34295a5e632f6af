"""A whole stack as a process of its own, and what a caller would do with it."""

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
from ourvidz.ledger.record import Record
from ourvidz.ledger.store import Ledger
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
    """The first true answer of `read`."""
    ends = time.monotonic() + within_s
    while True:
        answer = read()
        if answer:
            return answer
        assert time.monotonic() < ends, why
        time.sleep(POLL_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Stack:
    """One running `ourvidz up`."""

    def __init__(self, state_dir: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.state_dir = state_dir
        state_dir.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ourvidz.cli.main", "up", "--state-dir", str(state_dir), *arguments],
            stdout=subprocess.PIPE,
            stderr=(state_dir / "up.err").open("ab"),
            env=environment(PYTHONPATH=str(ROOT), **(env or {})),
            cwd=state_dir,
            process_group=0,
        )
        self.ready = self._await_ready()
        self.ready_after_s = time.monotonic() - began
        self.shim: str = self.ready["shim"]
        self.redis_url: str = self.ready["redis"]
        self.client = Shim(self.shim, self.ready["api_key"])

    @property
    def pids(self) -> dict[str, int]:
        """Name → process id as announced; after a restart ask `pid_of`."""
        return dict(self.ready["pids"])

    def get(self, path: str, **query: Any) -> requests.Response:
        """The raw answer to a GET."""
        return requests.get(self.shim + path, params=query, timeout=10)

    def post(self, path: str, document: Any = None, **more: Any) -> requests.Response:
        """The raw answer to a POST of a JSON document."""
        return requests.post(self.shim + path, json=document, timeout=10, **more)

    def payload(self, job_id: str, **fields: Any) -> dict[str, Any]:
        """A small image job; `fields` change it."""
        config = {"width": 64, "height": 64, "seed": 1}
        job = {"id": job_id, "type": "sdxl_image_fast", "prompt": "a red circle on blue", "user_id": USER}
        return {**job, "config": config, **fields}

    def submit(self, job_id: str, **fields: Any) -> dict[str, Any]:
        """Submit a small image job; `fields` change the payload."""
        answer = self.post("/jobs", self.payload(job_id, **fields))
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def job(self, job_id: str) -> dict[str, Any]:
        """How a job stands."""
        return self.client.job(job_id)

    def wait_done(self, job_id: str, within_s: float = JOB_S) -> dict[str, Any]:
        """Follow a job's event stream to its end; the job as it then stands."""
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
        """The first true answer of `read`."""
        return wait_for(read, within_s=within_s, why=why)

    def inbox(self, job_id: str | None = None) -> list[dict[str, Any]]:
        """What the callback receiver got, oldest first."""
        return list(self.client.get("/inbox", job_id=job_id, limit=1000)["items"])

    def wait_callbacks(self, job_id: str, *statuses: str, within_s: float = 15) -> list[dict[str, Any]]:
        """Wait until the receiver has got these statuses, in this order and no others."""
        wait_for(
            lambda: [item["payload"]["status"] for item in self.inbox(job_id)] == list(statuses),
            within_s=within_s,
            why=f"{job_id}: {[item['payload']['status'] for item in self.inbox(job_id)]}, not {statuses}",
        )
        return self.inbox(job_id)

    def record(self, job_id: str) -> Record:
        """The ledger's own record of a job."""
        found = self.ledger.get(job_id)
        assert found is not None, f"no record of {job_id}"
        return found

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger of this stack, from outside."""
        return Ledger(self.redis_url)

    def computing_child(self, family: str = "sdxl") -> int:
        """The process id of a worker's pool child, which holds the pipeline."""
        workers = [worker for worker in self.ledger.workers() if worker.family == family]
        return workers[0].pid

    def pid_of(self, name: str) -> int | None:
        """The process id of a part of the stack right now."""
        for child in psutil.Process(self.process.pid).children():
            command = child.cmdline()
            named = (
                command[-1] == name
                or name in command[3:8]
                or (name == "redis" and "server" in command[:1][0])
            )
            if command and named and child.status() != psutil.STATUS_ZOMBIE:
                return int(child.pid)
        return None

    def kill(self, name: str, signum: int = signal.SIGKILL) -> int:
        """Send a signal to one part of the stack; the process id it had."""
        pid = self.pid_of(name)
        assert pid is not None, f"no {name} process"
        os.kill(pid, signum)
        return pid

    @staticmethod
    def run_up(state_dir: Path) -> subprocess.CompletedProcess[str]:
        """Try a second `up` on a state directory and wait until it has ended."""
        return subprocess.run(
            [sys.executable, "-m", "ourvidz.cli.main", "up", "--state-dir", str(state_dir), "--no-flower"],
            env=environment(PYTHONPATH=str(ROOT)),
            cwd=state_dir,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def family(self) -> list[psutil.Process]:
        """Every process of the stack, `up` first."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    @staticmethod
    def outliving(family: list[psutil.Process], *, within_s: float) -> list[psutil.Process]:
        """Who of them still runs. An orphan that has ended waits for the machine's first process to bury it,
        which may take its time."""
        left = psutil.wait_procs(family, timeout=within_s)[1]
        return [one for one in left if _runs(one)]

    def stop(self, within_s: float = STOP_S) -> int:
        """SIGTERM to `up`, as an operator would; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"`up` was still there {within_s:g} s after SIGTERM\n{self.tails()}"
            ) from None

    def destroy(self) -> None:
        """Kill whatever is left."""
        try:
            family = self.family()
        except psutil.NoSuchProcess:
            family = []
        for process in reversed(family):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def tails(self) -> str:
        """The ends of all logs."""
        logs = [self.state_dir / "up.err", *sorted((self.state_dir / "logs").glob("*.log"))]
        return "\n".join(
            f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
            for log in logs
            if log.exists()
        )

    def _await_ready(self) -> dict[str, Any]:
        too_long = threading.Timer(READY_S, self.process.kill)
        too_long.start()
        assert self.process.stdout is not None
        try:
            line = self.process.stdout.readline()
        finally:
            too_long.cancel()
        if not line:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"`up` did not become ready\n{self.tails()}")
        ready: dict[str, Any] = json.loads(line)
        return ready


@contextmanager
def stack(state_dir: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Stack]:
    """Start `ourvidz up` without Flower and with SDXL alone; when something fails, the logs are shown.

    `arguments` are those of `up` (`--flower` brings Flower back, `--workers wan` replaces SDXL), `env`
    changes its environment.
    """
    running = Stack(state_dir, "--no-flower", "--workers", "sdxl", *arguments, env=env)
    try:
        yield running
    except BaseException as failed:
        failed.add_note(running.tails())
        raise
    finally:
        running.destroy()


@pytest.fixture(name="stack")
def start_stack(tmp_path: Path) -> Callable[..., Any]:
    """`with stack(*arguments, env=...) as running:` in this test's own directory; also one after another."""

    def start(*arguments: str, env: dict[str, str] | None = None) -> Any:
        return stack(tmp_path / "state", *arguments, env=env)

    return start


@pytest.fixture(scope="module")
def stacks() -> Callable[..., Any]:
    """`stack` for a whole module: `with stacks(state_dir, *arguments, env=...) as running:`."""
    return stack


@pytest.fixture(scope="module")
def waiting() -> Callable[..., Any]:
    """`wait_for`, for tests that wait for something of their own."""
    return wait_for


def missing_browser() -> str | None:
    """What a machine lacks that has no browser for tests."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed (pip install 'ourvidz[dev]')"
    return None if chromium_binary() else "Chromium is not installed: run scripts/install-chromium"


def chromium_binary() -> str | None:
    """`$CHROMIUM_BIN`, else the one on the path."""
    found = (shutil.which(name) for name in BROWSERS)
    return os.environ.get("CHROMIUM_BIN") or next(filter(None, found), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by Playwright. Without one the test is skipped, under CI it fails."""
    missing = missing_browser()
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{missing}: nothing is played in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its sandbox needs rights that a container seldom has; the pages are our own.
        opened = playwright.chromium.launch(executable_path=chromium_binary(), args=["--no-sandbox"])
        yield opened
        opened.close()
