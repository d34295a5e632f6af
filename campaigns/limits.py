"""Floods two shims and compares what they admit with the quotas; holds connections under a low file limit.

    python -m campaigns.limits [--posts 1000] [--connections 300]

Parts: parallel submissions of one user through both shims, with each id sent twice; reads of one key through
both; waiting jobs of one user; silent and half-sent connections, also in one burst while the shim is stopped.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests

from campaigns.installation import wait_until
from campaigns.releases import ROOT
from ourvidz.embedded_redis import PrivateServer, find_server, free_port
from ourvidz.ledger.store import Ledger

CLIENTS = 32
JOB_S = 30
"""Estimated seconds of the submitted jobs."""
ADMITTED = 333
"""Jobs that the allowance of the user has; its window is so long that none comes back."""
READS = 700
WAITING = 50
OPEN_FILES = 256
PARTS = (
    b"",
    b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le",
    b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{",
)
"""What the connections send of a request."""


def job(job_id: str, user: str) -> dict[str, Any]:
    """A payload of a small image job."""
    return {"id": job_id, "type": "sdxl_image_fast", "prompt": "a red hill", "user_id": user}


@contextmanager
def shim(redis_url: str, folder: Path, **variables: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A shim process under a limit of open files; yields its URL."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OURVIDZ_")}
    env = {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "OURVIDZ_REDIS_URL": redis_url,
        "OURVIDZ_STATE_DIR": str(folder),
        "OURVIDZ_PORTS": str(port),
        "OURVIDZ_LOG_LEVEL": "ERROR",
        **variables,
    }
    limit = ("prlimit", f"--nofile={OPEN_FILES}")
    process = subprocess.Popen([*limit, sys.executable, "-m", "ourvidz.cli.main", "worker", "web"], env=env)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _is_live(url), within_s=60, what="a shim")
        yield url, process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def _is_live(url: str) -> bool:
    try:
        return requests.get(f"{url}/health/live", timeout=2).status_code == 200
    except requests.RequestException:
        return False


def statuses(call: Callable[[int], requests.Response], count: int) -> Counter[int]:
    """How many of parallel requests were answered with each status."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return Counter(answer.status_code for answer in pool.map(call, range(count)))


def count_limits(redis_url: str, folder: Path, posts: int) -> dict[str, tuple[object, object]]:
    """Flood two shims; return what was expected and what was seen, by name."""
    variables = {
        "OURVIDZ_LIMIT_SUBMIT_USER": f"{ADMITTED * JOB_S}/999999",
        "OURVIDZ_LIMIT_READ": f"{READS}/999999",
        "OURVIDZ_MAX_USER_QUEUED": str(ADMITTED + WAITING),
    }
    with ExitStack() as stack:
        urls = [stack.enter_context(shim(redis_url, folder, **variables))[0] for _ in range(2)]
        ledger = Ledger(redis_url)
        stack.callback(ledger.close)
        sessions = [requests.Session() for _ in urls]

        def post(number: int) -> requests.Response:
            document = job(f"j{number // 2}", "ada")
            return sessions[number % 2].post(f"{urls[number % 2]}/jobs", json=document, timeout=60)

        def read(number: int) -> requests.Response:
            return sessions[number % 2].get(f"{urls[number % 2]}/jobs?limit=1", timeout=60)

        submitted = statuses(post, 2 * posts)
        depth = ledger.queue_depth("sdxl_queue")
        reads = statuses(read, 2 * READS)
        return {
            "new jobs of one user": (ADMITTED, submitted[202]),
            "jobs in the queue": (ADMITTED, depth),
            "answers of submissions": ({202, 200, 429}, set(submitted) | {200}),
            "reads of one key": (READS, reads[200]),
            "answers of reads": ({200, 429}, set(reads)),
        }


def count_waiting(redis_url: str, folder: Path, posts: int) -> dict[str, tuple[object, object]]:
    """Fill the waiting jobs of a user."""
    with shim(redis_url, folder, OURVIDZ_MAX_USER_QUEUED=str(WAITING)) as (url, _):
        session = requests.Session()
        seen = statuses(
            lambda number: session.post(f"{url}/jobs", json=job(f"w{number}", "eve"), timeout=60), posts
        )
    return {"waiting jobs of one user": ({202: WAITING, 429: posts - WAITING}, dict(seen))}


def hold_connections(redis_url: str, folder: Path, count: int) -> dict[str, tuple[object, object]]:
    """Hold connections, and send others what they need meanwhile."""
    failed = 0
    with shim(redis_url, folder) as (url, process), ExitStack() as held:
        port = int(url.rpartition(":")[2])

        def connect(number: int) -> None:
            client = held.enter_context(socket.socket())
            client.settimeout(5)
            client.connect(("127.0.0.1", port))
            client.sendall(PARTS[number % len(PARTS)])

        def connect_later() -> None:
            # A stopped process accepts nothing, and what its backlog has no space for stays in the network.
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))

        for number in range(count):
            connect(number)
            if number % 10 == 9:
                failed += not _serves(url, f"c{number}")
        process.send_signal(signal.SIGSTOP)
        for _ in range(count):
            connect_later()
        process.send_signal(signal.SIGCONT)
        began = time.monotonic()
        failed += not _serves(url, "after")
        waited_s = time.monotonic() - began
        running = process.poll() is None
    return {
        "requests of others that failed": (0, failed),
        "seconds after a burst, at most 3": (True, waited_s < 3),
        "the shim runs": (True, running),
    }


def _serves(url: str, job_id: str) -> bool:
    try:
        return (
            requests.get(f"{url}/health/live", timeout=10).status_code == 200
            and requests.post(f"{url}/jobs", json=job(job_id, "bob"), timeout=10).status_code == 202
            and requests.get(f"{url}/jobs/{job_id}", timeout=10).json()["status"] == "queued"
        )
    except requests.RequestException:
        return False


def main() -> int:
    """Run the campaign; the exit status is 1 if anything differs from what was expected."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--posts", type=int, default=1000, help="parallel submissions, each sent twice")
    parser.add_argument("--connections", type=int, default=300, help="connections that are held, twice")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ourvidz-limits-") as name:
        folder = Path(name)
        server = PrivateServer(binary=find_server(None), folder=folder)
        server.start()
        try:
            rows = {
                **count_limits(server.url, folder, options.posts),
                **count_waiting(server.url, folder, options.posts // 2),
                **hold_connections(server.url, folder, options.connections),
            }
        finally:
            server.kill()
    for what, (expected, seen) in rows.items():
        print(f"{what:36} {expected!s:28} {seen!s:28} {'' if expected == seen else 'DIFFERS'}")
    return int(any(expected != seen for expected, seen in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
