"""`ourvidz replay`: runs a job again and compares the two receipts."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import click

from ourvidz import dispatch
from ourvidz.cli.console import TableRow, print_json, print_note, print_table
from ourvidz.jobs.receipts import Comparison, compare_receipts
from ourvidz.records.record import Record
from ourvidz.wiring import control

POLL_S = 0.2
"""How often the record of the replay is read."""


@click.command(short_help="Run a job again, and say whether its result is the same.")
@click.argument("job_id")
@click.option("--timeout", type=float, default=3600.0, show_default=True, help="Seconds to wait for its end.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def replay(job_id: str, timeout: float, as_json: bool) -> None:
    """Run a completed image or video job again beside the original, and compare the results.

    The replay has an id and files of its own, and no callbacks. Exit status 1 when the pixels differ; then
    the components of the receipts that differ are named.
    """
    replayed = _wait(dispatch.replay(job_id).job_id, timeout)
    if replayed.status != "completed":
        reason = replayed.outcome.error.message if replayed.outcome and replayed.outcome.error else ""
        raise click.ClickException(f"{replayed.job_id} {replayed.status}: {reason}")
    comparison = compare_receipts(_receipt(job_id), _receipt(replayed.job_id))
    if as_json:
        print_json({"job_id": job_id, "replay_id": replayed.job_id, **asdict(comparison)})
    else:
        _print(comparison, replayed.job_id)
    if not comparison.identical:
        raise click.exceptions.Exit(1)


def _wait(job_id: str, timeout_s: float) -> Record:
    """The record of a job once it has ended. Raises `ClickException` after the timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        record = control.current().ledger.get(job_id)
        if record is None or record.finished:
            break
        if time.monotonic() > deadline:
            raise click.ClickException(f"{job_id} is still {record.status}; it runs on")
        time.sleep(POLL_S)
    if record is None:
        raise click.ClickException(f"{job_id} was deleted")
    return record


def _receipt(job_id: str) -> dict[str, Any]:
    record = control.current().ledger.get(job_id)
    return (record and dispatch.receipt_of(record)) or {}


def _print(comparison: Comparison, replay_id: str) -> None:
    print_note(f"replayed as {replay_id}")
    if comparison.differences:
        rows = [
            TableRow((difference.component, json.dumps(difference.original), json.dumps(difference.replayed)))
            for difference in comparison.differences
        ]
        print_table(("component", "original", "replayed"), rows)
    if comparison.identical:
        click.echo("identical")
    elif comparison.differences:
        click.echo("different: " + ", ".join(difference.component for difference in comparison.differences))
    else:
        click.echo("different, although the receipts agree")
