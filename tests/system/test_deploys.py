"""Deploys: however a supervisor stops a worker, and however late its models can be read, no job loses an
attempt."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from campaigns.units import Unit
from ourvidz import dispatch
from ourvidz.app import app as celery_app
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Record
from ourvidz.recovery.sweep import sweep
from ourvidz.settings import environment, load_settings
from ourvidz.wiring import control
from tests.factories import image_job, publishing_to
from tests.system.conftest import wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/systemd/ourvidz-worker@.service"
PROGRAM = "/opt/ourvidz/bin/ourvidz"
"""The program that the files in `deploy` run."""
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
        }
        state_dir.mkdir()
        self.log = state_dir / "worker.log"
        self.ledger = Ledger(redis_url)
        self.process: subprocess.Popen[bytes] | None = None
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, command: tuple[str, ...] = WORKER, *, workers: int = 1, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own and wait until so many workers have loaded their
        models."""
        self.process = subprocess.Popen(
            command,
            env=environment(PYTHONPATH=str(ROOT), **{**self.variables, **variables}),
            cwd=self.state_dir,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        self.processes.append(self.process)
        self.wait_for(lambda: self.ready_workers() >= workers, "no worker became ready", within_s=60)
        return self.process

    def ready_workers(self) -> int:
        """The number of running workers that have loaded their models."""
        return sum(bool(worker.models) and worker.state != "offline" for worker in self.ledger.workers())

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
        for process in self.processes:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
                process.wait()
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
    """Whoever cannot wait for a job must not pay for it with an attempt. A terminal that is closed sends
    SIGHUP."""
    deployment.start(OURVIDZ_DRAIN_S="60")
    deployment.start_job("a")
    deployment.signal_group(signal.SIGHUP)
    deployment.wait_for(lambda: deployment.ledger.workers()[0].draining, "the worker does not drain")
    deployment.signal_group(signal.SIGINT)
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


def load_unit(instance: str, **variables: str) -> Unit:
    """An instance of the unit that is shipped, with the `ourvidz` of this checkout as its program."""
    unit = Unit.load(UNIT, instance, overrides={"OURVIDZ_ALLOW_CPU": "true", **variables})
    assert unit.command[0] == PROGRAM
    return replace(unit, command=(*WORKER[:4], *unit.command[1:]))


def start_unit(deployment: Deployment, unit: Unit, *, workers: int) -> subprocess.Popen[bytes]:
    """Start a unit. The directories of the test replace those of the unit."""
    return deployment.start(unit.command, workers=workers, **{**unit.environment, **deployment.variables})


def test_a_deploy_restarts_one_unit_at_a_time_and_charges_no_attempt(deployment: Deployment) -> None:
    """`systemctl restart` of each unit in turn, while jobs run that outlast the drain limit: each is handed
    back and runs on another worker, as its first attempt. Nothing had to be killed."""
    units = {
        f"sdxl-{gpu}": load_unit(f"sdxl-{gpu}", PROCESS="sdxl", OURVIDZ_GPU=str(gpu), OURVIDZ_DRAIN_S="1")
        for gpu in (0, 1)
    }
    processes = {
        name: start_unit(deployment, unit, workers=number)
        for number, (name, unit) in enumerate(units.items(), 1)
    }
    for job_id in ("a", "b"):
        deployment.start_job(job_id)
    dispatch.submit(image_job("c"))
    for name, unit in units.items():
        assert unit.kill_mode == "mixed"
        assert not unit.stop(processes[name])
        processes[name] = start_unit(deployment, unit, workers=2)
    deployment.finish()
    jobs = ("a", "b", "c")
    deployment.wait_for(lambda: all(deployment.record(job).finished for job in jobs), "a job did not end")
    for record in map(deployment.record, jobs):
        assert (record.status, record.attempt, record.failures) == ("completed", 1, {}), record


def test_a_unit_that_signals_its_whole_control_group_lets_the_job_finish(deployment: Deployment) -> None:
    """Operators have units of their own, and `control-group` is systemd's default. The shipped drain limit is
    long enough for the job."""
    unit = replace(load_unit("sdxl"), kill_mode="control-group")
    process = start_unit(deployment, unit, workers=1)
    deployment.start_job("a")
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(unit.stop, process)
        deployment.wait_for(lambda: deployment.ledger.workers()[0].draining, "the worker does not drain")
        deployment.finish()
        assert not killed.result(EXIT_S)
    record = deployment.record("a")
    assert (record.status, record.attempt, record.failures) == ("completed", 1, {})


@pytest.fixture
def supervisord(deployment: Deployment) -> Iterator[Callable[..., str]]:
    """Runs the shipped supervisord configuration with its SDXL worker; returns a function that calls
    `supervisorctl`. Without supervisor the test is skipped, under CI it fails."""
    folder = Path(os.environ.get("SUPERVISOR_BIN", Path(sys.executable).parent))
    if not (folder / "supervisord").exists():
        missing = "supervisor is not installed (pip install 'ourvidz[dev]'): its configuration is not run"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    text = (ROOT / "deploy/supervisord/supervisord.conf").read_text()
    for shipped in ("/var/lib/ourvidz", "/var/log/ourvidz", "/run/ourvidz"):
        text = text.replace(shipped, str(deployment.state_dir))
    shipped_config = ConfigParser(interpolation=None)
    shipped_config.read_string(text.replace(PROGRAM, " ".join(WORKER[:4])))
    del shipped_config["supervisord"]["user"]
    for name in ("keeper", "io", "wan", "chat", "web"):
        del shipped_config[f"program:{name}"]
    config = deployment.state_dir / "supervisord.conf"
    with config.open("w") as file:
        shipped_config.write(file)

    def control(*arguments: str) -> str:
        command = (str(folder / "supervisorctl"), "-c", str(config), *arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout

    deployment.log = deployment.state_dir / "sdxl.log"
    process = deployment.start((str(folder / "supervisord"), "-n", "-c", str(config)))
    yield control
    process.terminate()
    assert process.wait(EXIT_S) == 0


def test_supervisord_restarts_drains_and_stops_a_worker(
    deployment: Deployment, supervisord: Callable[..., str]
) -> None:
    """With the shipped configuration: a worker that was killed comes back, and `supervisorctl restart` lets
    its job finish."""

    def pid() -> int:
        return int(supervisord("pid", "sdxl"))

    killed = pid()
    os.kill(killed, signal.SIGKILL)

    def came_back() -> bool:
        children = children_of(pid())
        return any(worker.pid in children and worker.models for worker in deployment.ledger.workers())

    deployment.wait_for(came_back, "no worker was started again", within_s=60)
    deployment.start_job("a")
    with ThreadPoolExecutor(1) as pool:
        restarted = pool.submit(supervisord, "restart", "sdxl")
        deployment.wait_for(lambda: deployment.ledger.workers()[0].draining, "the worker does not drain")
        deployment.finish()
        assert "sdxl: started" in restarted.result(60)
    record = deployment.record("a")
    assert (record.status, record.attempt, record.failures) == ("completed", 1, {})
    assert "sdxl: stopped" in supervisord("stop", "sdxl")


def children_of(pid: int) -> set[int]:
    """The child processes of a process; none where it has ended meanwhile, or is 0: `supervisorctl pid` of a
    program that waits for its restart."""
    try:
        return {child.pid for child in psutil.Process(pid).children()} if pid else set()
    except psutil.NoSuchProcess:
        return set()


def sweep_until(deployment: Deployment, status: str) -> bool:
    """Sweep once; whether job `a` has this status."""
    sweep(deployment.ledger, dispatch.Broker(), control.current().sweep_options)
    return deployment.record("a").status == status


def test_a_worker_that_cannot_load_its_models_tries_again_and_then_runs_what_waits(
    deployment: Deployment,
) -> None:
    """A file system that was mounted late cost an installation its worker until somebody restarted it."""
    (deployment.state_dir / "broken").touch()
    deployment.finish()
    deployment.start(workers=0)
    failed = lambda: [worker for worker in deployment.ledger.workers() if worker.state == "failed"]  # noqa: E731
    (row,) = deployment.wait_for(failed, "the worker did not fail", within_s=60)
    assert (row.models, row.detail["error"]) == ((), "the file system is not mounted")
    assert deployment.ledger.queue_seen_at("sdxl_queue") is None
    dispatch.submit(image_job("a"))
    failures = row.detail["load_failures"]
    deployment.wait_for(
        lambda: deployment.ledger.workers()[0].detail["load_failures"] > failures + 1, "no further attempts"
    )
    assert (deployment.record("a").status, deployment.record("a").attempt) == ("queued", 0)
    (deployment.state_dir / "broken").unlink()
    deployment.wait_for(lambda: deployment.ledger.workers()[0].state == "idle", "the models were not loaded")
    # Where the worker had received the message and refused to claim the job, a sweep publishes it again.
    deployment.wait_for(lambda: sweep_until(deployment, "completed"), "the job did not run")
    (loaded,) = deployment.ledger.workers()
    assert (loaded.pid, loaded.models, "error" in loaded.detail) == (row.pid, ("sdxl",), False)
    assert deployment.record("a").attempt == 1
    deployment.signal_group(signal.SIGTERM)
    assert deployment.exit_status() == 0
