"""`ourvidz doctor`: runs all checks of this installation and prints a reason and a fix for each failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import click

from ourvidz.cli import broker_checks, checks, model_checks
from ourvidz.cli.checks import Check, failed, ok, skipped
from ourvidz.cli.console import TableRow, print_json, print_table
from ourvidz.errors import SettingsError
from ourvidz.settings import Settings, load_settings

CHECKS: tuple[tuple[str, Callable[[Settings], Check]], ...] = (
    ("checkpoints", model_checks.check_sdxl_checkpoint),
    ("sdxl", model_checks.check_sdxl_options),
    ("wan checkpoint", model_checks.check_wan_checkpoint),
    ("wan", model_checks.check_wan_options),
    ("qwen", model_checks.check_qwen),
    ("moderation", checks.check_moderation),
    ("broker", broker_checks.check_broker),
    ("durability", broker_checks.check_durability),
    ("storage", checks.check_storage),
    ("signing", checks.check_signing),
    ("callbacks", checks.check_callbacks),
)
"""The checks that need valid settings, by name. `check_torch` runs before them: it returns two results."""


@click.command(short_help="Check that this machine has what it needs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check that this machine has what it needs. Exit status 1 when something is missing."""
    results = run_checks()
    if as_json:
        print_json([asdict(check) for check in results])
    else:
        print_checks(results)
    if any(check.status == "failed" for check in results):
        raise click.exceptions.Exit(1)


def run_checks() -> list[Check]:
    """Run all checks. With invalid settings only `python` and `settings` run, the others are skipped."""
    results = [checks.check_python()]
    try:
        settings = load_settings()
    except SettingsError as error:
        results.append(
            failed("settings", error.message, "correct this variable in the environment or in .env")
        )
        names = ("torch", *(name for name, _ in CHECKS))
        return [*results, *(skipped(name, "needs valid settings") for name in names)]
    results.append(ok("settings", f"profile {settings.profile}, state in {settings.state_dir}"))
    results.extend(model_checks.check_torch(settings))
    results.extend(check(settings) for _, check in CHECKS)
    return results


def print_checks(results: list[Check]) -> None:
    """Print a table of check results: name, status, and the reason with its fix."""
    colours = {"ok": "green", "failed": "red", "skipped": "bright_black"}
    rows = [
        TableRow(
            (check.name, check.status, f"{check.reason}\nfix: {check.fix}" if check.fix else check.reason)
        )
        for check in results
    ]
    print_table(("check", "status", "reason"), rows, colours=colours)
