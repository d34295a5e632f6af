"""`ourvidz ledger`: checks what is stored of jobs, queues and callbacks."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import click

from ourvidz import dispatch
from ourvidz.cli.console import TableRow, print_json, print_note, print_table
from ourvidz.records.findings import Finding
from ourvidz.recovery.check import CheckReport, check_ledger
from ourvidz.wiring import control

SHOWN = 100
"""Findings that the table shows; `--json` has all."""


@click.group(short_help="Check the records, queues and callbacks, and mend them.")
def ledger() -> None:
    """Check what is stored of jobs, queues and callbacks. Uses Redis, not HTTP."""


@ledger.command()
@click.option("--repair", is_flag=True, help="Mend what is found.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(repair: bool, as_json: bool) -> None:
    """Verify that records, indexes, queues, callbacks and messages agree, while everything runs.

    Exit status 1 when something is wrong and was not mended.
    """
    report = check_ledger(control.current().ledger, dispatch.Broker(), repair=repair)
    if as_json:
        print_json({"ok": report.ok, **asdict(report)})
    else:
        _print_report(report)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _print_report(report: CheckReport) -> None:
    findings = report.findings
    if findings:
        rows = [_row(finding) for finding in findings[:SHOWN]]
        print_table(("what", "mended", "job, event or queue"), rows, colours={"no": "red", "yes": "green"})
    if len(findings) > SHOWN:
        counts = ", ".join(f"{count} {code}" for code, count in Counter(f.code for f in findings).items())
        print_note(f"{len(findings) - SHOWN} more (in all {counts}); --json prints them")
    click.echo(_summary(report))


def _row(finding: Finding) -> TableRow:
    return TableRow((finding.code, "yes" if finding.mended else "no", finding.subject), (finding.detail,))


def _summary(report: CheckReport) -> str:
    checked = f"{report.jobs} jobs and {report.events} callbacks checked"
    if not report.findings:
        return f"{checked}: all is well"
    mended = sum(finding.mended for finding in report.findings)
    left = len(report.findings) - mended
    return f"{checked}: {len(report.findings)} found, {mended} mended, {left} left"
