"""How many GPUs one control host feeds.

    python -m benchmarks.fleet [--gpus 8 16] [--shims 1] [--senders 1] [--seconds 15]

Runs a server (append-only file, `appendfsync always`), shims, io processes and a keeper against emulated
workers whose jobs take one second, with one caller for each GPU. Measured are the time from a submission to
the start of its job, and the processor time of each process of the control host. The workers and the
callers run on the same processors, which a fleet would not, so the number of GPUs is extrapolated from the
processor time a job:

    GPUs that CORES feed = UTILISATION x CORES x 1000 ms / processor time a job, for jobs of one second

and each process by itself can have one core at most: the server is one thread, and a Python process has one
interpreter lock.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

import redis

from benchmarks.fleet.clients import Fleet
from benchmarks.fleet.host import WORKERS, ControlHost, running_host
from benchmarks.processes import differences
from benchmarks.results import Figures, Run, comparison_table, figures_table, percentiles
from ourvidz.cli.console import print_note
from ourvidz.embedded_redis import free_port

CORES = 2
UTILISATION = 0.7
"""Share of the processors that may be busy: above it queues grow, and with them the dispatch time."""
WARM_UP_S = 4.0


def main() -> None:
    """Measure each number of GPUs and print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--shims", type=int, default=1)
    parser.add_argument("--senders", type=int, default=1, help="io processes")
    parser.add_argument("--worker-processes", type=int, default=1, help="processes that emulate the workers")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--label", default="now")
    parser.add_argument("--output", type=Path, help="store the run as JSON")
    parser.add_argument("--against", type=Path, help="compare with a stored run")
    arguments = parser.parse_args()
    systems: dict[str, Figures] = {}
    for gpus in arguments.gpus:
        name = f"{gpus} GPUs, {arguments.shims} shims, {arguments.senders} io"
        print_note(name)
        systems[name] = measure(
            gpus,
            shims=arguments.shims,
            senders=arguments.senders,
            worker_processes=arguments.worker_processes,
            seconds=arguments.seconds,
        )
        print(f"\n{name}\n{figures_table(systems[name])}", flush=True)
    run = Run("fleet", arguments.label, systems)
    if arguments.output:
        run.write(arguments.output)
    if arguments.against:
        print(comparison_table(Run.read(arguments.against), run))


def measure(gpus: int, *, shims: int, senders: int, worker_processes: int, seconds: float) -> Figures:
    """Run one fleet for some seconds."""
    port = free_port()
    with running_host(
        shims=shims, senders=senders, gpus=gpus, worker_processes=worker_processes, callback_port=port
    ) as host:
        fleet = Fleet("fleet")
        used_s, window_s, ended = asyncio.run(_run(fleet, host, gpus, port, seconds))
        started_at = _started_at(host.redis_url, ended)
    dispatch_ms = [(started_at[job_id] - fleet.submitted[job_id]) * 1000 for job_id in ended]
    p50_ms, p99_ms = percentiles(dispatch_ms)
    jobs = len(ended)
    control = {role: used for role, used in used_s.items() if role != WORKERS}
    total_ms = sum(control.values()) * 1000 / jobs
    counts = {"web": shims, "io": senders}
    return {
        "jobs/s": jobs / window_s,
        "dispatch: p50 ms": p50_ms,
        "dispatch: p99 ms": p99_ms,
        "control host: processor time a job ms": total_ms,
        **{f"{role}: processor time a job ms": used * 1000 / jobs for role, used in control.items()},
        "control host: busy cores": sum(control.values()) / window_s,
        "emulated workers: processor time a job ms": used_s[WORKERS] * 1000 / jobs,
        f"extrapolated: GPUs fed by {CORES} cores": UTILISATION * CORES * 1000 / total_ms,
        **{
            f"extrapolated: GPUs until {role} is the limit": UTILISATION
            * 1000
            * counts.get(role, 1)
            * jobs
            / (used * 1000)
            for role, used in control.items()
            if used and role != "keeper"
        },
    }


async def _run(
    fleet: Fleet, host: ControlHost, gpus: int, port: int, seconds: float
) -> tuple[dict[str, float], float, list[str]]:
    """The processor time by role, the length of the measured window, and the jobs that ended in it."""
    async with fleet.receiving(port):
        running = asyncio.create_task(fleet.run(host.shims, gpus, WARM_UP_S + seconds))
        await asyncio.sleep(WARM_UP_S)
        before, began, began_at = host.processor_s(), time.monotonic(), time.time()
        await asyncio.sleep(seconds)
        used_s = differences(before, host.processor_s())
        window_s = time.monotonic() - began
        ended = [job_id for job_id, at in fleet.ended.items() if at >= began_at]
        await running
    return used_s, window_s, ended


def _started_at(redis_url: str, job_ids: list[str]) -> dict[str, float]:
    """When each job was claimed: Unix seconds of the server's clock, which is this machine's."""
    with redis.Redis.from_url(redis_url) as client:
        pipeline = client.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hget(f"ourvidz:job:{job_id}", "claimed_at")
        return {job_id: float(at) for job_id, at in zip(job_ids, pipeline.execute(), strict=True)}


if __name__ == "__main__":
    main()
