"""The faults of `campaigns.faults`: each breaks one thing of a running stack, and heals it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import redis

from campaigns.receiver import UnreliableReceiver
from campaigns.stack import LEASE_S, Stack
from campaigns.storages import RemoteFiles

PROCESSES = ("web", "io", "keeper", "sdxl")
SHORT_S, LONG_S = 0.5, LEASE_S + 2
"""How long a process is frozen: noticed by nobody, or long enough to lose a lease."""
OUTAGE_S = 3.0
CLOCK_STEPS_S = (-600, 600)


@dataclass(slots=True)
class Bench:
    """What a fault may break, and the random numbers that choose how.

    `accepted`: the ids of the jobs submitted so far. `interrupted` counts the attempts that faults may have
    interrupted for a reason the job is charged for: its worker was killed, or silent for longer than a lease.
    `storage_failed`: a fault kept files from being stored for longer than they are tried.
    """

    stack: Stack
    receiver: UnreliableReceiver
    random: random.Random
    accepted: list[str]
    interrupted: int = 0
    storage_failed: bool = False

    def process(self, name: str) -> psutil.Process | None:
        """The running process of this name; None while it is being restarted."""
        return self.stack.process(name)


def kill_process(bench: Bench) -> str:
    """Kill a process of the stack, as the out-of-memory killer does."""
    return _kill(bench, bench.random.choice(("web", "io", "keeper")))


def kill_worker(bench: Bench) -> str:
    """Kill the worker or its pool child."""
    bench.interrupted += 1
    return _kill(bench, bench.random.choice(("sdxl", "child")))


def _kill(bench: Bench, name: str) -> str:
    process = bench.process(name)
    if process is None:
        return f"kill {name}: it is not running"
    process.kill()
    return f"kill {name}"


def terminate_process(bench: Bench) -> str:
    """Stop a process as a supervisor does that signals only the process."""
    name = bench.random.choice(PROCESSES)
    process = bench.process(name)
    if process is not None:
        process.terminate()
    return f"SIGTERM to {name}"


def terminate_group(bench: Bench) -> str:
    """Stop a process as systemd does by default: a signal to all processes of its group."""
    name = bench.random.choice(PROCESSES)
    process = bench.process(name)
    if process is not None:
        os.killpg(process.pid, signal.SIGTERM)
    return f"SIGTERM to the group of {name}"


def freeze_process(bench: Bench) -> str:
    """Suspend a process for a while, as a busy or swapping machine does."""
    name = bench.random.choice((*PROCESSES, "child"))
    for_s = bench.random.choice((SHORT_S, LONG_S))
    process = bench.process(name)
    if process is None:
        return f"freeze {name}: it is not running"
    if name in ("sdxl", "child") and for_s > LEASE_S:
        bench.interrupted += 1
    try:
        process.suspend()
        time.sleep(for_s)
        process.resume()
    except psutil.NoSuchProcess:
        return f"freeze {name}: it ended"
    return f"freeze {name} for {for_s:g} s"


def freeze_server(bench: Bench) -> str:
    """Suspend the Redis server."""
    for_s = bench.random.choice((SHORT_S, LONG_S))
    bench.stack.server.signal(signal.SIGSTOP)
    time.sleep(for_s)
    bench.stack.server.signal(signal.SIGCONT)
    return f"freeze the server for {for_s:g} s"


def restart_server(bench: Bench) -> str:
    """Kill the Redis server, and start it again on its data."""
    bench.stack.server.kill()
    time.sleep(bench.random.choice((0, OUTAGE_S)))
    bench.stack.server.start()
    return "restart the server"


def cut_connections(bench: Bench) -> str:
    """Close every connection to the Redis server several times."""
    with redis.Redis.from_url(bench.stack.server.url) as client:
        for _ in range(5):
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
            time.sleep(0.1)
    return "cut all connections"


def refuse_callbacks(bench: Bench) -> str:
    """Let the receiver refuse every callback for a while."""
    bench.receiver.refusing.set()
    time.sleep(OUTAGE_S)
    bench.receiver.refusing.clear()
    return f"receiver refuses for {OUTAGE_S:g} s"


def redeliver(bench: Bench) -> str:
    """Publish the messages of known jobs again: of queued, running and ended ones."""
    job_ids = bench.random.sample(bench.accepted, min(10, len(bench.accepted)))
    bench.stack.redelivery.publish(job_ids)
    return f"redeliver {len(job_ids)} messages"


def restart_stack(bench: Bench) -> str:
    """Kill `ourvidz up`, or stop it as a deploy does; start it again."""
    if bench.random.random() < 0.5:
        bench.interrupted += 1
        bench.stack.kill()
        how = "kill"
    else:
        bench.stack.stop()
        how = "stop"
    bench.stack.start()
    return f"{how} and start everything"


def fill_disk(bench: Bench) -> str:
    """Fill the disk of the stored files for a while."""
    bench.storage_failed = True
    filler = bench.stack.assets / "~filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024 * 1024))
    except OSError:
        time.sleep(OUTAGE_S)
    finally:
        filler.unlink(missing_ok=True)
    return f"disk full for {OUTAGE_S:g} s"


def overload_storage(bench: Bench) -> str:
    """Let the storage server answer every request with 503 for a while."""
    bench.storage_failed = True
    storage = _remote_storage(bench)
    storage.overload(True)
    time.sleep(OUTAGE_S)
    storage.overload(False)
    return f"storage overloaded for {OUTAGE_S:g} s"


def cut_storage(bench: Bench) -> str:
    """Close every connection to the storage server several times."""
    for _ in range(5):
        _remote_storage(bench).cut_connections()
        time.sleep(0.05)
    return "cut all connections to the storage"


def _remote_storage(bench: Bench) -> RemoteFiles:
    assert isinstance(bench.stack.storage, RemoteFiles)
    return bench.stack.storage


def step_clock(bench: Bench) -> str:
    """Step the server's clock by ten minutes. It stays there until the next step."""
    offset_s = bench.random.choice((0, *CLOCK_STEPS_S))
    bench.stack.clock.step_to(offset_s)
    time.sleep(1.5)
    return f"server's clock at {offset_s:+d} s"


EVENTS: dict[Callable[[Bench], str], int] = {
    kill_process: 4,
    kill_worker: 3,
    terminate_process: 2,
    terminate_group: 2,
    freeze_process: 3,
    freeze_server: 1,
    restart_server: 2,
    cut_connections: 3,
    refuse_callbacks: 1,
    redeliver: 2,
    restart_stack: 1,
    fill_disk: 1,
    overload_storage: 1,
    cut_storage: 2,
    step_clock: 1,
}
"""Every fault with its weight."""


def possible_events(stack: Stack) -> tuple[dict[Callable[[Bench], str], int], list[str]]:
    """The faults that this machine allows, and for each other one the reason."""
    events, missing = dict(EVENTS), []
    if isinstance(stack.storage, RemoteFiles):
        del events[fill_disk]
    else:
        del events[overload_storage], events[cut_storage]
    if fill_disk in events and not stack.can_fill_disk:
        del events[fill_disk]
        missing.append("disk full: no file system may be mounted here")
    if not stack.clock.can_step:
        del events[step_clock]
        missing.append("clock steps: libfaketime is not installed")
    return events, missing
