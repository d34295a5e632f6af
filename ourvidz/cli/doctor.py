"""`ourvidz doctor`: runs all checks of this installation and prints a reason and a fix for each failure.

The checks run at the same time, each in a thread of its own with a time limit: servers, disks and drivers
that hang are what an operator looks for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import click

from ourvidz.cli import (
    broker_checks,
    checks,
    env_files,
    gpu_checks,
    host_checks,
    libraries,
    model_checks,
    signature_check,
)
from ourvidz.cli.checks import Check, failed, ok, skipped
from ourvidz.cli.console import TableRow, print_json, print_table
from ourvidz.errors import SettingsError
from ourvidz.settings import Settings, load_settings

CHECK_LIMIT_S = 30.0
"""How long one check may take."""
TORCH_LIMIT_S = model_checks.TORCH_TIMEOUT_S + 10.0
"""How long the import of torch in a process of its own may take, and its end."""
HANGS_FIX = "see what hangs: the disk, the server or the network behind it"

CHECKS: tuple[tuple[str, Callable[[Settings], Check]], ...] = (
    ("driver", host_checks.check_driver),
    ("memory", host_checks.check_memory),
    ("disk", host_checks.check_disk),
    ("checkpoints", model_checks.check_sdxl_checkpoint),
    ("sdxl", model_checks.check_sdxl_options),
    ("wan checkpoint", model_checks.check_wan_checkpoint),
    ("wan", model_checks.check_wan_options),
    ("qwen", model_checks.check_qwen),
    ("env files", env_files.check_env_files),
    ("keys", checks.check_keys),
    ("moderation", checks.check_moderation),
    ("pictures", checks.check_image_classifier),
    ("broker", broker_checks.check_broker),
    ("durability", broker_checks.check_durability),
    ("shared gpu", gpu_checks.check_shared_gpu),
    ("storage", checks.check_storage),
    ("signing", checks.check_signing),
    ("callbacks", checks.check_callbacks),
    ("signatures", signature_check.check_signatures),
    ("clock", host_checks.check_clock),
)
"""The checks that need valid settings, by name. `check_torch` runs before them: it returns two results."""
WORKER_CHECKS = frozenset(
    ("driver", "memory", "checkpoints", "sdxl", "wan checkpoint", "wan", "qwen", "pictures", "signing")
)
"""Those of what only GPU workers use: skipped on a control host, as torch is."""


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
    is_control = libraries.is_control_host(settings)
    running = [
        _Running(name, partial(_as_list, check, settings), CHECK_LIMIT_S)
        for name, check in CHECKS
        if not (is_control and name in WORKER_CHECKS)
    ]
    if is_control:
        reason = "a control host has no libraries of workers and no checkpoint"
        results.append(skipped("torch", f"{reason}; workers need {libraries.INSTALL}"))
        reason = "no GPU worker can run on this control host"
        results.extend(skipped(name, reason) for name, _ in CHECKS if name in WORKER_CHECKS)
    else:
        running.insert(0, _Running("torch", lambda: model_checks.check_torch(settings), TORCH_LIMIT_S))
    return [*results, *(result for each in running for result in each.results())]


@dataclass
class _Running:
    """A check that runs in a thread, which is left behind when its time is over."""

    name: str
    check: Callable[[], list[Check]]
    limit_s: float
    _results: list[Check] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ends_at = time.monotonic() + self.limit_s
        self._thread = threading.Thread(target=self._run, name=f"check-{self.name}", daemon=True)
        self._thread.start()

    def results(self) -> list[Check]:
        """Wait for the results, until the time is over."""
        self._thread.join(max(0.0, self._ends_at - time.monotonic()))
        if self._thread.is_alive():
            return [failed(self.name, f"it did not end within {self.limit_s:g} s", HANGS_FIX)]
        return self._results or [failed(self.name, "the check itself failed", "report what it has printed")]

    def _run(self) -> None:
        # What a check does not expect is printed with its traceback, and hides no other result.
        self._results = self.check()


def _as_list(check: Callable[[Settings], Check], settings: Settings) -> list[Check]:
    return [check(settings)]


def print_checks(results: list[Check]) -> None:
    """Print a table of check results: name, status, and the reason with its fix."""
    colours = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}
    rows = [
        TableRow(
            (check.name, check.status, f"{check.reason}\nfix: {check.fix}" if check.fix else check.reason)
        )
        for check in results
    ]
    print_table(("check", "status", "reason"), rows, colours=colours)
