"""`ourvidz doctor`: all checks together, their order, exit status and output."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ourvidz.cli import doctor
from ourvidz.cli.checks import Check
from ourvidz.cli.main import cli

NAMES = [
    "python",
    "settings",
    "torch",
    "gpu",
    "driver",
    "memory",
    "disk",
    "checkpoints",
    "sdxl",
    "wan checkpoint",
    "wan",
    "qwen",
    "env files",
    "keys",
    "moderation",
    "pictures",
    "broker",
    "durability",
    "shared gpu",
    "storage",
    "signing",
    "callbacks",
    "signatures",
    "clock",
]


def test_a_machine_with_no_settings_passes_all_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default installation needs no configuration, so doctor must report no failure for it."""
    monkeypatch.setenv("OURVIDZ_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 0, result.stdout
    assert list(checks) == NAMES
    assert "CUDA" in checks["torch"]["reason"] or "CPU" in checks["torch"]["reason"]


def test_an_invalid_setting_is_the_only_failure_and_the_rest_is_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One wrong variable must not appear as eight failures."""
    monkeypatch.setenv("OURVIDZ_LEASE_S", "-1")
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 1
    checks = doctor.run_checks()
    (failure,) = (check for check in checks if check.status == "failed")
    assert failure.name == "settings"
    assert "OURVIDZ_LEASE_S" in failure.reason
    assert failure.fix
    assert [check.name for check in checks] == [name for name in NAMES if name != "gpu"]


def test_a_control_host_is_asked_for_nothing_that_only_workers_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, production: dict[str, str]
) -> None:
    """Its settings are those of the workers too: a fleet has one set of them. A checkpoint that is there
    makes it a host of workers, which lacks the libraries."""
    names = {"torch", *doctor.WORKER_CHECKS}
    monkeypatch.chdir(tmp_path)
    variables = {
        "OURVIDZ_STATE_DIR": str(tmp_path),
        "OURVIDZ_SDXL_MODEL": "/nowhere/sdxl",
        "OURVIDZ_SDXL_LORAS": "hills=/nowhere/hills.safetensors",
        "OURVIDZ_WAN_MODEL": "/nowhere/wan",
        "OURVIDZ_QWEN_MODEL": "/nowhere/qwen",
        "OURVIDZ_C2PA_CERTIFICATE": "/nowhere/certificate.pem",
        "OURVIDZ_C2PA_KEY": "/nowhere/key.pem",
        "OURVIDZ_HOST_BUDGET_MIB": "10000000",
    }
    for name, value in (production | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor.libraries, "find_spec", lambda name: None if name == "torch" else object())
    monkeypatch.setattr(doctor, "CHECKS", tuple(row for row in doctor.CHECKS if row[0] in names))
    assert {check.name: check.status for check in doctor.run_checks()} == {
        "python": "ok",
        "settings": "ok",
        **dict.fromkeys(names, "skipped"),
    }
    monkeypatch.setenv("OURVIDZ_SDXL_MODEL", str(tmp_path))
    statuses = {check.name: check.status for check in doctor.run_checks()}
    assert (statuses["torch"], statuses["memory"], statuses["sdxl"]) == ("failed",) * 3


def test_a_warning_is_printed_with_its_fix_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installation works: what waits for the exit status must not stop."""
    monkeypatch.setenv("OURVIDZ_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("OURVIDZ_API_KEY=c0ffee5eedfadedfacade0123456789ab\n")
    (tmp_path / ".env").chmod(0o644)
    monkeypatch.setattr(doctor.model_checks, "check_torch", lambda _: [Check("torch", "ok", "")])
    monkeypatch.setattr(doctor, "CHECKS", tuple(row for row in doctor.CHECKS if row[0] == "env files"))
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0
    assert "env files  warning" in result.stdout
    assert "fix: chgrp" in result.stdout


def test_a_fix_is_printed_below_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """The fix is shown literally, with the brackets of an extra's name."""
    doctor.print_checks([Check("broker", "failed", "none", "pip install 'ourvidz[embedded]'")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["broker", "failed", "none"]
    assert lines[2].strip() == "fix: pip install 'ourvidz[embedded]'"


def test_checks_that_hang_are_failures_and_end_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk, a server or a driver that does not answer is what one looks for; all may hang at once."""
    monkeypatch.setenv("OURVIDZ_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    released = threading.Event()

    def hang(_: object) -> list[Check]:
        released.wait(60)
        return [Check("late", "ok", "")]

    monkeypatch.setattr(doctor, "CHECK_LIMIT_S", 0.2)
    monkeypatch.setattr(doctor, "TORCH_LIMIT_S", 0.3)
    monkeypatch.setattr(doctor, "CHECKS", tuple((name, hang) for name, _ in doctor.CHECKS))
    monkeypatch.setattr(doctor.model_checks, "check_torch", hang)
    started = time.monotonic()
    results = doctor.run_checks()
    released.set()
    assert time.monotonic() - started < 10
    hanging = [check for check in results if check.status == "failed"]
    assert [check.name for check in hanging] == [name for name in NAMES[2:] if name != "gpu"]
    assert {check.reason for check in hanging} == {
        "it did not end within 0.2 s",
        "it did not end within 0.3 s",
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_check_that_fails_itself_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback is printed."""
    monkeypatch.setenv("OURVIDZ_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.model_checks, "check_torch", lambda _: [Check("torch", "ok", "")])
    monkeypatch.setattr(
        doctor, "CHECKS", (("disk", lambda _: 1 / 0), ("clock", lambda _: Check("clock", "ok", "")))
    )
    results = {check.name: check for check in doctor.run_checks()}
    assert (results["disk"].status, results["disk"].reason) == ("failed", "the check itself failed")
    assert results["clock"].status == "ok"
