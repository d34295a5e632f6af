"""Supervisors that stop a worker by signalling its whole process group: no job loses its attempt."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from ourvidz import dispatch
from ourvidz.app import app as celery_app
from ourvidz.ledger.record import Record
from ourvidz.ledger.store import Ledger
from ourvidz.settings import environment, load_settings
from ourvidz.wiring import control
from tests.factories import image_job, publishing_to
from tests.system.conftest import wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
WORKER = (sys.executable, "-P", "-m", "ourvidz.cli.main", "worker", "sdxl")
EXIT_S = 15.0


class Deployment:
    """A Redis server, and `ourvidz worker sdxl` under whatever starts it; no keeper, so that only the worker
    itself can hand a job back."""

    def __init__(self, redis_url: str, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.variables = {
            "OURVIDZ_REDIS_URL": redis_url,
            "OURVIDZ_STATE_DIR": str(state_dir),
            "OURVIDZ_MODELS": "tests.system.paced_models:build",
            "PYTHONPATH": str(ROOT),
        }
        state_dir.mkdir()
        self.log = state_dir / "worker.log"
        self.ledger = Ledger(redis_url)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, command: tuple[str, ...] = WORKER, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own and wait until the worker has loaded its models."""
        self.process = subprocess.Popen(
            command,
            env=environment(**{**self.variables, **variables}),
            cwd=self.state_dir,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        self.wait_for(
            lambda: any(worker.state == "idle" and worker.models for worker in self.ledger.workers()),
            "no worker became ready",
            within_s=60,
        )
        return self.process

    def start_job(self, job_id: str) -> Record:
        """Submit a job and wait until it is at work; return its record."""
        dispatch.submit(image_job(job_id))
        self.wait_for(lambda: self.record(job_id).progress > 0, f"{job_id} did not start")
        return self.record(job_id)

    def finish(self) -> None:
        """Let every job finish at its next step."""
        (self.state_dir / "finish").touch()

    def record(self, job_id: str) -> Record:
        record = self.ledger.get(job_id)
        assert record is not None
        return record

    def wait_for(self, read: Callable[[], Any], why: str, within_s: float = EXIT_S) -> Any:
        try:
            return wait_for(read, within_s=within_s, why=why)
        except AssertionError as error:
            error.add_note(self.log.read_text(errors="replace")[-4000:])
            raise

    def exit_status(self) -> int:
        """Wait for the end of the process."""
        assert self.process is not None
        return self.process.wait(EXIT_S)

    def signal_group(self, signum: signal.Signals) -> None:
        """Signal every process of the group, as systemd does by default."""
        assert self.process is not None
        os.killpg(self.process.pid, signum)

    def destroy(self) -> None:
        """Kill what is left."""
        if self.process is not None and self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.kill()
            self.process.wait()
        self.ledger.close()


@pytest.fixture
def deployment(redis_url: str, tmp_path: Path) -> Iterator[Deployment]:
    with ExitStack() as stack:
        deployment = Deployment(redis_url, tmp_path / "state")
        stack.callback(deployment.destroy)
        settings = load_settings(_env_file=None, **deployment.variables)
        stack.enter_context(publishing_to(redis_url))
        stack.enter_context(control.using(control.build(settings, ledger=deployment.ledger)))
        yield deployment


@pytest.fixture
def honcho() -> tuple[str, ...]:
    """The command that runs a Procfile. Without honcho the test is skipped, under CI it fails."""
    if importlib.util.find_spec("honcho") is None:
        missing = "honcho is not installed (pip install 'ourvidz[dev]'): no Procfile is run"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    return (sys.executable, "-m", "honcho", "start")


def test_a_signal_to_the_process_group_lets_the_running_job_finish(deployment: Deployment) -> None:
    """It is systemd's default. The child ignores it, and is still ended by its parent: a job that is revoked
    with `terminate` stops at once."""
    deployment.start(OURVIDZ_DRAIN_S="60")
    deployment.start_job("revoked")
    child = deployment.ledger.workers()[0].pid
    celery_app.control.revoke("revoked", terminate=True, signal="SIGTERM")
    deployment.wait_for(lambda: not psutil.pid_exists(child), "the child was not terminated")
    deployment.wait_for(lambda: deployment.record("revoked").status == "cancelled", "not cancelled")
    deployment.start_job("a")
    child = deployment.ledger.workers()[0].pid
    deployment.signal_group(signal.SIGTERM)
    deployment.wait_for(lambda: deployment.ledger.workers()[0].draining, "the worker does not drain")
    assert psutil.pid_exists(child)
    deployment.finish()
    assert deployment.exit_status() == 0
    record = deployment.record("a")
    assert (record.status, record.attempt, record.failures) == ("completed", 1, {})


def test_a_second_signal_hands_the_job_back_and_the_attempt_does_not_count(deployment: Deployment) -> None:
    """Whoever cannot wait for a job must not pay for it with an attempt."""
    deployment.start(OURVIDZ_DRAIN_S="60")
    deployment.start_job("a")
    deployment.signal_group(signal.SIGINT)
    deployment.wait_for(lambda: deployment.ledger.workers()[0].draining, "the worker does not drain")
    deployment.signal_group(signal.SIGTERM)
    deployment.exit_status()
    record = deployment.record("a")
    assert (record.status, record.attempt, record.failures, record.publishes) == ("queued", 0, {}, 2)


def test_under_honcho_a_job_is_handed_back_before_it_is_killed(
    deployment: Deployment, honcho: tuple[str, ...]
) -> None:
    """honcho signals each process group and kills it five seconds later; the default drain limit is shorter.
    The next worker runs the job as its first attempt."""
    (deployment.state_dir / "Procfile").write_text(f"sdxl: {' '.join(WORKER)}\n")
    deployment.start(honcho)
    deployment.start_job("a")
    assert deployment.process is not None
    deployment.process.send_signal(signal.SIGTERM)
    deployment.exit_status()
    record = deployment.record("a")
    assert (record.status, record.attempt, record.failures) == ("queued", 0, {})
    deployment.finish()
    deployment.start()
    deployment.wait_for(lambda: deployment.record("a").status == "completed", "the job did not run again")
    assert deployment.record("a").attempt == 1
