"""Two installations on one Redis server, apart by their key prefix alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from ourvidz.errors import Cancelled
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.settings import Settings, environment, load_settings
from ourvidz.testing import CallbackRecorder
from ourvidz.wiring import control
from tests.factories import image_job
from tests.system.conftest import ROOT, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

JOBS = 12
CANCELLED = Outcome.failure(Cancelled("the job was cancelled"))


@dataclass
class Installation:
    """Settings and ledger of one installation, and its io worker as a process."""

    settings: Settings
    ledger: Ledger
    worker: subprocess.Popen[bytes]

    def finish(self, job_id: str) -> None:
        """Record a job and end it, which leaves one callback in the outbox."""
        record = self.ledger.register(image_job(job_id), priority=6).record
        assert self.ledger.end(record, outcome=CANCELLED)


@pytest.fixture
def installations(
    redis_url: str, tmp_path: Path, ourvidz_callbacks: CallbackRecorder
) -> Iterator[list[Installation]]:
    """Two installations that differ in their prefix only; their workers have the same name."""
    with ExitStack() as stack:

        def start(prefix: str) -> Installation:
            variables = {
                "OURVIDZ_REDIS_URL": redis_url,
                "OURVIDZ_KEY_PREFIX": prefix,
                "OURVIDZ_STATE_DIR": str(tmp_path),
                "OURVIDZ_CALLBACK_URL": ourvidz_callbacks.url,
                "JOB_CALLBACK_SECRET": ourvidz_callbacks.callback_secret,
            }
            command = [sys.executable, "-m", "ourvidz.cli.main", "worker", "io"]
            env = environment(PYTHONPATH=str(ROOT), **variables)
            with (tmp_path / f"{prefix.strip(':')}.log").open("wb") as log:
                worker = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log)
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            settings = load_settings(_env_file=None, **variables)
            return Installation(settings, control.build(settings).ledger, worker)

        started = [start("one:"), start("two:")]
        for each in started:
            stack.callback(each.ledger.close)
            wait_for(each.ledger.online_workers, within_s=60, why="the io worker did not start")
        yield started


def test_two_installations_on_one_server_deliver_their_own_callbacks(
    installations: list[Installation], ourvidz_callbacks: CallbackRecorder
) -> None:
    """A process that took a job of the other installation would find no event of it in its own outbox."""
    names: list[str] = []
    for number in range(JOBS):
        for installation in installations:
            name = f"{installation.settings.key_prefix}{number}"
            installation.finish(name)
            names.append(name)
    wait_for(
        lambda: {one.payload["job_id"] for one in list(ourvidz_callbacks.received)} == set(names),
        within_s=15,
        why="a callback was swallowed by the other installation",
    )
    with redis.Redis.from_url(installations[0].settings.redis_url, decode_responses=True) as client:
        assert [key for key in client.scan_iter() if not key.startswith(("one:", "two:"))] == []
