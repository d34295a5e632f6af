"""`ourvidz doctor`: all checks together, their order, exit status and output."""

from __future__ import annotations

import json
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
    "checkpoints",
    "sdxl",
    "wan checkpoint",
    "wan",
    "qwen",
    "moderation",
    "broker",
    "durability",
    "storage",
    "signing",
    "callbacks",
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


def test_a_fix_is_printed_below_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """The fix is shown literally, with the brackets of an extra's name."""
    doctor.print_checks([Check("broker", "failed", "none", "pip install 'ourvidz[embedded]'")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["broker", "failed", "none"]
    assert lines[2].strip() == "fix: pip install 'ourvidz[embedded]'"
