"""`ourvidz audit`."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ourvidz.auditing.logfile import LogFile, LogOptions
from ourvidz.auditing.segments import segments_in
from ourvidz.auditing.signing import HMACKey
from ourvidz.cli.audit import audit
from ourvidz.settings import set_environment, settings
from ourvidz.storage.local import LocalStore


@pytest.fixture
def log_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A closed log of this host, signed with the callback secret."""
    for name, value in (("OURVIDZ_STATE_DIR", tmp_path), ("JOB_CALLBACK_SECRET", "a-secret")):
        monkeypatch.setenv(name, str(value))
    set_environment()
    root, store = tmp_path / "audit", LocalStore(settings().storage_dir)
    log = LogFile.open(root, socket.gethostname(), HMACKey(b"a-secret"), store, LogOptions())
    log.append([{"event": "request", "who": "shop"}] * 5)
    log.close()
    return root / log.id


def verify(*options: str) -> Result:
    return CliRunner().invoke(audit, ["verify", *options])


def test_a_good_log_exits_with_0_and_a_changed_one_with_1(log_folder: Path) -> None:
    """The first bad entry is named."""
    good = verify()
    assert good.exit_code == 0, good.output
    assert f"{log_folder.name}  ok" in good.output
    (path,) = segments_in(log_folder)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b"shop", b"nope")
    path.write_bytes(b"".join(lines))
    bad = verify("--json")
    assert bad.exit_code == 1
    (report,) = json.loads(bad.output)["logs"]
    assert [(problem["kind"], problem["entry"]) for problem in report["problems"]] == [("bad_entry", 3)]
    assert "bad_entry: entry 3" in verify().output


def test_a_log_that_was_deleted_is_missed(log_folder: Path) -> None:
    """Its checkpoints are in the storage, under the name of this host."""
    for path in segments_in(log_folder):
        path.unlink()
    log_folder.rename(log_folder.with_name("elsewhere")).rename(log_folder.parents[1] / "gone")
    result = verify()
    assert result.exit_code == 1
    assert "cut: 7 signed entries are missing, from entry 0 on" in result.output


def test_a_command_with_other_settings_says_so(log_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot know whether the log is good, and names the settings that it lacks."""
    monkeypatch.setenv("JOB_CALLBACK_SECRET", "another")
    set_environment()
    result = verify()
    assert result.exit_code == 1
    assert "verify with the settings of the shim" in result.output
