"""`ourvidz fleet`: what an autoscaled fleet would do."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import IO, Any

import click

from ourvidz.autoscaling.arrivals import Arrival, day_of_arrivals, read_arrivals
from ourvidz.autoscaling.configuration import policy_for
from ourvidz.autoscaling.policy import Policy
from ourvidz.autoscaling.simulation import FleetOptions, FleetReport, simulate
from ourvidz.cli.console import TableRow, print_json, print_table
from ourvidz.jobs.catalog import QUEUES
from ourvidz.settings import settings

SECONDS = click.FloatRange(min=0, max=86400)


@click.group(short_help="Simulate an autoscaled fleet.")
def fleet() -> None:
    """Simulate an autoscaled fleet."""


@fleet.command("simulate")
@click.option(
    "--arrivals", type=click.File("r"), help="A CSV file: at_s,type[,run_s]; `-` for standard input."
)
@click.option("--pattern", type=click.Choice(["day"]), help="Arrivals of one day; the default.")
@click.option(
    "--queue", type=click.Choice(list(QUEUES.values())), help="The queue of the pattern (sdxl_queue)."
)
@click.option("--target-wait", "target_wait_s", type=click.FloatRange(min=0.001, max=86400), metavar="S")
@click.option("--min", "minimum", type=click.IntRange(0, 1000), help="Fewest workers.")
@click.option("--max", "maximum", type=click.IntRange(1, 1000), help="Most workers.")
@click.option("--idle", "idle_s", type=SECONDS, metavar="S", help="Until the last worker is stopped.")
@click.option(
    "--start",
    "start_s",
    type=SECONDS,
    metavar="S",
    default=90.0,
    show_default=True,
    help="Until a new worker is ready.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the pattern's random times.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def simulate_(arrivals: IO[str] | None, pattern: str | None, queue: str | None, target_wait_s: float | None,
              minimum: int | None, maximum: int | None, idle_s: float | None, start_s: float, seed: int,
              as_json: bool) -> None:  # fmt: skip
    """Replay a day of jobs on a fleet that follows `GET /autoscale/{queue}`, on a virtual clock.

    Options that are left out are the settings of this installation.
    """
    if arrivals is not None and pattern is not None:
        raise click.UsageError("give --arrivals or --pattern")
    by_queue = read_arrivals(arrivals) if arrivals is not None else _pattern(queue, seed)
    if queue is not None and queue not in by_queue:
        raise click.UsageError(f"there are no jobs of {queue} in the file")
    changes = {"target_wait_s": target_wait_s, "minimum": minimum, "maximum": maximum, "idle_s": idle_s}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    for name, jobs in by_queue.items():
        if queue not in (None, name):
            continue
        policy = replace(policy_for(settings(), name), **given)
        if policy.maximum < policy.minimum:
            raise click.UsageError(f"--min {policy.minimum} is more than --max {policy.maximum}")
        report = simulate(jobs, policy, FleetOptions(start_s=start_s))
        if as_json:
            print_json(document(name, policy, report))
        else:
            _print(name, jobs, policy, report)


def _pattern(queue: str | None, seed: int) -> dict[str, list[Arrival]]:
    name = queue or QUEUES["sdxl"]
    return {name: day_of_arrivals(name, seed=seed)}


def document(queue: str, policy: Policy, report: FleetReport) -> dict[str, Any]:
    """The JSON document of one simulation."""
    return {
        "queue": queue,
        "policy": asdict(policy),
        "jobs": len(report.waits_s),
        "wait_p50_s": round(report.wait_s(0.5), 3),
        "wait_p95_s": round(report.wait_s(0.95), 3),
        "wait_max_s": round(report.wait_s(1.0), 3),
        "most_workers": report.most_workers,
        "last_workers": report.last_workers,
        "workers_started": report.started,
        "workers_stopped": report.stopped,
        "busy_workers_stopped": report.stopped_busy,
        "worker_hours": round(report.worker_s / 3600, 3),
        "workers": [[round(change.at_s, 3), change.workers] for change in report.changes],
    }


def _print(queue: str, jobs: list[Arrival], policy: Policy, report: FleetReport) -> None:
    """Print a simulation: a row for each hour, then the sums."""
    by_hour = report.workers_by_hour()
    submitted = [0] * len(by_hour)
    for job in jobs:
        submitted[min(int(job.at_s // 3600), len(submitted) - 1)] += 1
    rows = [
        TableRow((f"{hour:02d}:00", str(submitted[hour]), str(workers), "#" * workers))
        for hour, workers in enumerate(by_hour)
    ]
    click.echo(f"{queue}: {len(jobs)} jobs, target wait {policy.target_wait_s:g} s")
    print_table(("hour", "jobs", "workers", ""), rows)
    waits = [f"{report.wait_s(share):.0f} s" for share in (0.5, 0.95, 1.0)]
    click.echo("wait: median {}, p95 {}, longest {}".format(*waits))
    click.echo(f"workers: at most {report.most_workers}, {report.last_workers} at the end")
    click.echo(f"{report.started} started, {report.stopped} stopped, {report.stopped_busy} of them busy")
    always_h = report.most_workers * report.ended_s / 3600
    paid_h = report.worker_s / 3600
    click.echo(f"worker hours: {paid_h:.1f}, of {always_h:.1f} with {report.most_workers} all the time")
