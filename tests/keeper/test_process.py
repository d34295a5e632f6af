"""`ourvidz worker keeper` as real processes: recovery needs nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Record
from ourvidz.settings import environment
from tests.factories import BEAT_MESSAGE, image_job

pytestmark = pytest.mark.system

DEADLINE_S = 20.0
LEASE_S = 1.0


class Keepers:
    """Keeper processes on one server, and the ledger that they sweep."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.ledger = Ledger(redis_url)
        self._folder = folder
        self._url = redis_url
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """Start one, and wait until its first heartbeat."""
        env = environment(
            OURVIDZ_REDIS_URL=self._url,
            OURVIDZ_STATE_DIR=str(self._folder),
            OURVIDZ_LEASE_S=str(LEASE_S),
            OURVIDZ_SWEEP_S="0.1",
            PYTHONPATH=str(Path(__file__).parents[2]),
        )
        log = (self._folder / "keeper.log").open("ab")
        argv = [sys.executable, "-m", "ourvidz.cli.main", "worker", "keeper"]
        process = subprocess.Popen(argv, env=env, cwd=self._folder, stdout=log, stderr=log)
        self.processes.append(process)
        self.wait(lambda: any(worker.pid == process.pid for worker in self.ledger.workers()), "its heartbeat")
        return process

    def lose_a_job(self, job_id: str) -> None:
        """Claim a job as a worker that dies at once."""
        self.ledger.register(image_job(job_id), priority=6)
        claim = self.ledger.claim(job_id, 1, worker_id="sdxl@gone", lease_s=LEASE_S, token=job_id)
        assert claim is not None

    def recovery_s(self, job_id: str) -> float:
        """Wait until a lost job is queued again; returns the seconds."""
        began = time.monotonic()
        self.wait(lambda: self.record(job_id).status == "queued", f"{job_id} to be recovered")
        return time.monotonic() - began

    def record(self, job_id: str) -> Record:
        record = self.ledger.get(job_id)
        assert record is not None
        return record

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            log = (self._folder / "keeper.log").read_text()
            assert time.monotonic() < deadline, f"waited for {what}\n{log}"
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.ledger.close()


@pytest.fixture
def keepers(redis_url: str, tmp_path: Path) -> Iterator[Keepers]:
    made = Keepers(redis_url, tmp_path)
    yield made
    made.close()


def test_a_keeper_alone_recovers_jobs_and_stops_when_asked(keepers: Keepers, redis_url: str) -> None:
    """There is no other process whose clock or death could stop recovery; and messages by which earlier
    releases triggered sweeps are dropped."""
    with redis.Redis.from_url(redis_url) as client:
        client.lpush("maintenance", *[BEAT_MESSAGE] * 3)
        client.lpush("maintenance\x06\x166", BEAT_MESSAGE)
        keeper = keepers.start()
        keepers.lose_a_job("a")
        keepers.recovery_s("a")
        keepers.wait(lambda: not client.exists("maintenance", "maintenance\x06\x166"), "the messages' end")
    (row,) = keepers.ledger.workers()
    assert (row.family, row.state) == ("keeper", "idle")
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(DEADLINE_S) == 0
    assert keepers.ledger.workers()[0].state == "offline"


def test_a_keeper_imports_what_callers_push_onto_their_lists(keepers: Keepers, redis_url: str) -> None:
    """An edge function that was not migrated pushes as it always did."""
    sample = Path(__file__).parents[1] / "contract/payloads/10-live-edge-sdxl.json"
    payload = json.loads(sample.read_text())["payload"]
    keepers.start()
    with redis.Redis.from_url(redis_url) as client:
        client.rpush("sdxl_queue", json.dumps(payload))
        keepers.wait(lambda: client.llen("ourvidz:broker:sdxl_queue\x06\x166"), "the message of the job")
    record = keepers.ledger.get(payload["id"])
    assert record is not None
    assert (record.status, record.type) == ("queued", "sdxl_image_high")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_another_keeper_takes_over_after_one_lease(keepers: Keepers, signum: int) -> None:
    """Whether the active one died or is frozen: its own lease, and no second one for the lost job."""
    active = keepers.start()
    keepers.lose_a_job("before")
    keepers.recovery_s("before")
    keepers.start()
    active.send_signal(signum)
    keepers.lose_a_job("after")
    # The job's own lease and that of the keeper run at the same time; the rest is for a busy machine.
    assert keepers.recovery_s("after") < 2 * LEASE_S + 5.0
    assert keepers.record("after").failures == {"WORKER_LOST": 1}
