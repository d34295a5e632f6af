"""Many GPU workers in one process: the real tasks on a pool of threads, with a pipeline that sleeps.

    python -m benchmarks.fleet.workers GPUS

Consumes, claims, reports, commits and acknowledges with the code of a real worker, and sends the heartbeats
of as many workers as it stands for. A real worker would also have a connection to the broker of its own, on
which it asks once a second while it is idle.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

from ourvidz.jobs.catalog import QUEUES
from ourvidz.records.record import Worker
from ourvidz.settings import become_worker, settings

FAMILY = "sdxl"
BEATS_PER_PRESENCE = 5


def send_heartbeats(gpus: int) -> None:
    """Send the heartbeats of all workers, spread over the interval of one; never returns."""
    from ourvidz import __version__
    from ourvidz.wiring import control

    ledger, interval_s = control.current().ledger, settings().presence_s / BEATS_PER_PRESENCE
    started_at = time.time()
    while True:
        for number in range(gpus):
            ledger.heartbeat(
                Worker(
                    id=f"{FAMILY}@emulated-{settings().gpu}-{number}",
                    family=FAMILY,
                    queue=QUEUES[FAMILY],
                    host=socket.gethostname(),
                    pid=0,
                    gpu=str(number),
                    state="idle",
                    models=(FAMILY,),
                    version=__version__,
                    started_at=started_at,
                    seen_at=0.0,
                    broker_prefix=settings().broker_prefix,
                )
            )
            time.sleep(interval_s / gpus)


def main() -> None:
    """Run until a stop signal."""
    gpus = int(sys.argv[1])
    become_worker(FAMILY, None)
    from ourvidz.app import app

    threading.Thread(target=send_heartbeats, args=(gpus,), daemon=True).start()
    options = ("--without-gossip", "--without-mingle", "-E", "-l", "ERROR")
    name = settings().worker_id(FAMILY)
    pool = ("-P", "threads", "-c", str(gpus), "--prefetch-multiplier=1")
    app.start(["worker", "-n", name, *options, "-Q", QUEUES[FAMILY], *pool])


if __name__ == "__main__":
    main()
