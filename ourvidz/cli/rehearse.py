"""`ourvidz rehearse`: what an operator runs against an installation before it goes live."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import asdict
from typing import Any

import click

from ourvidz.cli.console import print_json, spinner
from ourvidz.cli.jobs import connect, shim_options
from ourvidz.jobs.catalog import CATALOG, lookup

TIMEOUT_S = 300.0


class _Types(click.ParamType[Any]):
    """Names of job types, separated by commas."""

    name = "types"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The names in the catalog, each once."""
        if isinstance(value, tuple):
            return value
        rows = {name: lookup(name) for name in value.replace(",", " ").split()}
        if unknown := [name for name, row in rows.items() if row is None]:
            self.fail(f"{unknown[0]!r} is no job type; there are {', '.join(CATALOG)}", param, ctx)
        if not rows:
            self.fail("names no type", param, ctx)
        return tuple(dict.fromkeys(row.name for row in rows.values() if row))


@click.command(short_help="Run a small job of each type, and check all that comes of it.")
@click.option(
    "--types",
    type=_Types(),
    default=tuple(CATALOG),
    metavar="TYPE,TYPE",
    help="Only these; all fourteen by default.",
)
@click.option(
    "--timeout",
    "limit_s",
    type=click.FloatRange(1),
    default=TIMEOUT_S,
    show_default=True,
    help="How many seconds one job may take, the loading of models included.",
)
@click.option("--keep", is_flag=True, help="Leave jobs and files there.")
@shim_options
def rehearse(
    types: tuple[str, ...], limit_s: float, keep: bool, url: str | None, key: str | None, as_json: bool
) -> None:
    """Run a small job of each type over HTTP, and check results, files, URLs and callbacks.

    Everything is deleted afterwards. Exit status 1 when something does not work.
    """
    # Imported here: requests takes as long to import as all other modules.
    from ourvidz.cli.doctor import print_checks
    from ourvidz.cli.rehearsal import USER, Rehearsal

    started_at = time.monotonic()
    # As Ctrl-C does: what was submitted is deleted first.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with spinner("looking for the shim") as report:
        rehearsal = Rehearsal(connect(url, key), limit_s=limit_s, report=report)
        try:
            results = rehearsal.run(types)
        finally:
            # Also when it is interrupted.
            deletion = rehearsal.kept() if keep else rehearsal.delete()
            signal.signal(signal.SIGTERM, before)
    results.append(deletion)
    success = not any(check.status == "failed" for check in results)
    if as_json:
        seconds = round(time.monotonic() - started_at, 1)
        steps = [asdict(check) for check in results]
        print_json({"ok": success, "user_id": USER, "kept": keep, "seconds": seconds, "steps": steps})
    else:
        print_checks(results)
    if not success:
        raise click.exceptions.Exit(1)
