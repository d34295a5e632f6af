"""Kills workers, pods, io processes and keepers while workers register at a backend that fails.

Afterwards each live worker type at a URL must have exactly one active record, no other may have one, and the
one URL that the functions in the field keep must be that of a live worker. The workers are real processes
with the heartbeats and registrations of GPU workers, and without models.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from campaigns.backend import CHAT, OTHERS, Backend, Failure, serve
from ourvidz.embedded_redis import PrivateServer, find_server
from ourvidz.ledger.store import Ledger
from ourvidz.liveness import registration
from ourvidz.liveness.heartbeat import Heartbeat
from ourvidz.settings import environment, load_settings
from ourvidz.wiring import control

FAMILIES = ("sdxl", "wan", "chat")
PODS = ("pod0", "pod1")
PRESENCE_S = 2.0
TIMEOUT_S = 1.0
REPEAT_S = 4.0
"""How often registrations are sent again: a late request is overwritten within this."""
PATIENCE_S = 60.0
AWAITED_SHARE = 0.7
"""The share of workers that are waited for: the others may die while they start."""
ROOT = Path(__file__).parents[1]


@dataclass
class Fleet:
    """The processes of an installation, and which workers of it are alive."""

    redis_url: str
    backend: Backend
    folder: Path
    ledger: Ledger
    helpers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    workers: dict[tuple[str, str, int], subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_helper(self, name: str) -> None:
        """Start an io process or a keeper."""
        argv = ("-m", "ourvidz.cli.main", "worker", name.rstrip("0123456789"))
        self.helpers[name] = self._start(name, argv, pod=name)

    def start_worker(self, family: str, pod: str, number: int) -> None:
        """Start a worker that does not run."""
        self.backend.down_shims.discard(url_of(pod))
        argv = ("-m", "campaigns.registrations", "--worker", family, "--gpu", str(number))
        self.workers[family, pod, number] = self._start("workers", argv, pod=pod)

    def is_online(self, key: tuple[str, str, int]) -> bool:
        """Whether a worker has registered in the ledger."""
        pid = self.workers[key].pid
        return any(each.pid == pid and each.state == "idle" for each in self.ledger.online_workers())

    def _start(self, name: str, argv: tuple[str, ...], *, pod: str) -> subprocess.Popen[bytes]:
        env = environment(
            OURVIDZ_REDIS_URL=self.redis_url,
            OURVIDZ_STATE_DIR=str(self.folder),
            OURVIDZ_PRESENCE_S=str(PRESENCE_S),
            OURVIDZ_LEASE_S="2",
            OURVIDZ_CALLBACK_TIMEOUT_S=str(TIMEOUT_S),
            OURVIDZ_REGISTRATION_S=str(REPEAT_S),
            RUNPOD_POD_ID=pod,
            SUPABASE_URL=self.backend.url,
            PYTHONPATH=str(ROOT),
        )
        log = (self.folder / f"{name}.log").open("ab")
        return subprocess.Popen((sys.executable, *argv), env=env, cwd=ROOT, stdout=log, stderr=log)

    def signal(self, key: tuple[str, str, int], signum: signal.Signals) -> None:
        """Send a worker a signal and wait until it has ended."""
        process = self.workers.pop(key, None)
        if process is not None:
            process.send_signal(signum)
            process.wait()

    @property
    def live(self) -> set[tuple[str, str]]:
        """Type and URL of each worker that runs."""
        return {(family, url_of(pod)) for family, pod, _ in self.workers}

    def close(self) -> None:
        """Kill everything."""
        for process in (*self.helpers.values(), *self.workers.values()):
            process.kill()
            process.wait()


def url_of(pod: str) -> str:
    """The URL of a pod."""
    return f"https://{pod}-7860.proxy.runpod.net"


@contextmanager
def fleet(folder: Path, backend: Backend) -> Iterator[Fleet]:
    """A server, two io processes and a keeper, without workers."""
    server = PrivateServer(binary=find_server(None))
    server.start()
    running = Fleet(server.url, backend, folder, Ledger(server.url, presence_s=PRESENCE_S))
    try:
        for name in ("io1", "io2", "keeper"):
            running.start_helper(name)
        yield running
    finally:
        running.close()
        running.ledger.close()
        server.kill()


def break_something(running: Fleet, rng: random.Random) -> str:
    """Start, stop or kill one thing; returns what."""
    what = rng.choice(("start", "start", "start", "start", "kill", "kill", "stop", "pod dies", "helper dies"))
    keys = [(family, pod, number) for family in FAMILIES for pod in PODS for number in (0, 1)]
    absent = [key for key in keys if key not in running.workers]
    if what == "start" and absent:
        key = rng.choice(absent)
        running.start_worker(*key)
        if rng.random() < AWAITED_SHARE:
            wait_until(lambda: running.is_online(key))
        return what
    key = rng.choice([*running.workers] or keys)
    if what == "start":
        return "nothing"
    if what in ("kill", "stop"):
        running.signal(key, signal.SIGKILL if what == "kill" else signal.SIGTERM)
    elif what == "pod dies":
        running.backend.down_shims.add(url_of(key[1]))
        for each in [each for each in running.workers if each[1] == key[1]]:
            running.signal(each, signal.SIGKILL)
    else:
        name = rng.choice([*running.helpers])
        running.helpers[name].kill()
        running.helpers[name].wait()
        running.start_helper(name)
    return what


def differences(running: Fleet) -> list[str]:
    """What the backend has wrong."""
    backend = running.backend
    problems = [f"{name} has no record" for name in running.live - backend.active]
    problems += [f"{name} has a record and no worker" for name in backend.active - running.live]
    for function in (CHAT, OTHERS):
        urls = {url for family, url in running.live if (family == "chat") == (function == CHAT)}
        if urls and backend.cells.get(function) not in urls:
            problems.append(f"{function} has the URL of no live worker")
    return problems


def run(folder: Path, *, events: int, seed: int, pause_s: float) -> dict[str, object]:
    """Break `events` things, let everything come to rest, and compare. Returns the result."""
    rng = random.Random(seed)
    faults: tuple[Failure | None, ...] = (None, None, None, "refused", "lost", "late")
    counts: dict[str, int] = {}
    with serve() as backend, fleet(folder, backend) as running:
        backend.late_s = 1.5 * TIMEOUT_S
        for family in FAMILIES:
            running.start_worker(family, PODS[0], 0)
        wait_until(lambda: not differences(running))
        backend.fault = lambda: rng.choice(faults)
        for _ in range(events):
            what = break_something(running, rng)
            counts[what] = counts.get(what, 0) + 1
            time.sleep(rng.uniform(0, pause_s))
        backend.fault = lambda: None
        settled_s = wait_until(lambda: not differences(running))
        # A request that is still under way must change nothing.
        time.sleep(REPEAT_S)
        wrong = differences(running)
        return {
            "events": events,
            "seed": seed,
            "counts": counts,
            "requests": len(backend.requests),
            "live": len(running.live),
            "settled_s": settled_s,
            "wrong": wrong,
        }


def wait_until(reached: Callable[[], bool]) -> float | None:
    """Wait until something is true; returns the seconds, None if it is not within `PATIENCE_S`."""
    began = time.monotonic()
    while not reached():
        if time.monotonic() - began > PATIENCE_S:
            return None
        time.sleep(0.1)
    return round(time.monotonic() - began, 1)


def work(family: str, gpu: str) -> None:
    """Be a worker of a family, until SIGTERM: load nothing, register, send heartbeats."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    settings = load_settings(OURVIDZ_GPU=gpu)
    ledger: Ledger = control.open_ledger(settings)
    heartbeat = Heartbeat(
        ledger,
        # Every pod of the campaign is on this host.
        worker_id=f"{family}@{settings.runpod_pod_id}-gpu{gpu}",
        family=family,
        queue=f"{family}_queue",
        pid=os.getpid(),
        gpu=gpu,
        presence_s=settings.presence_s,
    )
    heartbeat.start()
    made = registration.of_worker(settings, family, models={})
    heartbeat.update("idle", models=(family,), registration=registration.as_detail(made))
    registration.update_registrations(ledger)
    signal.sigwait({signal.SIGTERM})
    heartbeat.stop()
    registration.update_registrations(ledger)


def main() -> None:
    """Run the campaign and print its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=200, help="number of starts, stops and kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=1.0, help="most seconds between two of them")
    parser.add_argument("--worker", choices=FAMILIES, help=argparse.SUPPRESS)
    parser.add_argument("--gpu", default="0", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.gpu)
        return
    with tempfile.TemporaryDirectory(prefix="ourvidz-registrations-") as folder:
        result = run(Path(folder), events=arguments.events, seed=arguments.seed, pause_s=arguments.pause)
    print(json.dumps(result))
    sys.exit(1 if result["wrong"] or result["settled_s"] is None else 0)


if __name__ == "__main__":
    main()
