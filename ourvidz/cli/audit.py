"""`ourvidz audit`: verifies the audit logs of this host."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from ourvidz.auditing.verification import LogReport
from ourvidz.cli.console import TableRow, print_json, print_note, print_table
from ourvidz.cli.state import StateDir
from ourvidz.settings import settings
from ourvidz.wiring.auditing import signing_keys, verify_logs
from ourvidz.wiring.storage import open_store


@click.group(short_help="Verify the audit logs of this host.")
def audit() -> None:
    """Verify the audit logs that the shims of this state directory keep."""


@audit.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(as_json: bool) -> None:
    """Compare each log with its signed checkpoints. Exit status 1 if one was changed, cut or forked."""
    current = settings()
    state = StateDir(current.state_dir)
    own = (state.secrets().callback_secret,) if (state.root / "secrets.json").exists() else ()
    reports, elsewhere = verify_logs(current, open_store(current), signing_keys(current, own))
    ok = not any(report.problems for report in reports)
    if as_json:
        print_json({"ok": ok, "logs": [_document(report) for report in reports], "elsewhere": elsewhere})
    elif reports:
        print_table(("log", "state", "entries", "signed"), [_row(report) for report in reports])
    else:
        click.echo(f"No audit log in {current.state_dir}.")
    if elsewhere and not as_json:
        print_note(f"not verified here, logs of other hosts: {', '.join(elsewhere)}")
    sys.exit(0 if ok else 1)


def _document(report: LogReport) -> dict[str, object]:
    return {"ok": not report.problems, **asdict(report)}


def _row(report: LogReport) -> TableRow:
    details = [f"{problem.kind}: {problem.message}" for problem in report.problems]
    if report.size > report.signed:
        details.append(f"{report.size - report.signed} entries have no checkpoint yet")
    if report.crashes:
        details.append(f"not closed: {report.crashes} times; the last moments before may be missing")
    if report.other_keys:
        details.append(f"checkpoints signed by keys that are not known here: {report.other_keys}")
        if not report.checkpoints:
            details.append("verify with the settings of the shim: OURVIDZ_AUDIT_KEY, JOB_CALLBACK_SECRET")
    state = "bad" if report.problems else "ok"
    return TableRow((report.log, state, f"{report.first}-{report.size}", str(report.signed)), tuple(details))
