"""The writer of a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ourvidz.auditing import writer as module
from ourvidz.auditing.logfile import LogFile, LogOptions
from ourvidz.auditing.segments import segments_in
from ourvidz.auditing.signing import HMACKey
from ourvidz.auditing.writer import AuditWriter
from ourvidz.errors import SettingsError
from ourvidz.settings import load_settings
from ourvidz.storage.local import LocalStore
from ourvidz.wiring.auditing import audit_folder, signing_keys, verify_logs
from tests.auditing.test_verification import SMALL

CRASH = """
import os, sys
from ourvidz.settings import settings
from ourvidz.wiring.auditing import audit_writer
from ourvidz.wiring.storage import open_store
writer = audit_writer(settings(), open_store(settings()))
for number in range(int(sys.argv[1])):
    writer.append("request", who="shop")
if sys.argv[2] == "kill":
    import time
    from ourvidz.auditing.segments import segments_in
    from ourvidz.wiring.auditing import audit_folder
    def written():
        paths = [path for log in audit_folder(settings()).glob("*.*") for path in segments_in(log)]
        return sum(path.read_bytes().count(b"request") for path in paths)
    while written() < 30:
        time.sleep(0.005)
    os.kill(os.getpid(), 9)
writer.close()
"""


@pytest.fixture
def settings(tmp_path: Path):
    return load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path)


def entries(settings) -> list[dict[str, object]]:
    paths = [path for folder in audit_folder(settings).glob("*.*") for path in segments_in(folder)]
    lines = [line for path in paths for line in path.read_text().splitlines()[1:]]
    return [json.loads(line) for line in lines]


def test_a_killed_process_is_told_and_its_log_goes_on(settings, tmp_path: Path) -> None:
    """Its entries were written, and its successor's first entry says that nobody closed the log."""
    env = {**os.environ, "OURVIDZ_STATE_DIR": str(tmp_path)}
    for count, how in ((30, "kill"), (3, "close")):
        subprocess.run([sys.executable, "-c", CRASH, str(count), how], env=env, timeout=60, check=False)
    assert len([one for one in entries(settings) if one["event"] == "request"]) == 33
    (report,), elsewhere = verify_logs(settings, LocalStore(tmp_path / "assets"), signing_keys(settings))
    assert (report.problems, report.crashes, elsewhere) == ([], 1, [])
    for path in audit_folder(settings).rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_appending_waits_for_no_disk(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs stops the writer's thread only, and what it could not take is counted."""
    monkeypatch.setattr(module, "MAX_WAITING", 50)
    gate, waits = threading.Event(), threading.Event()
    store = LocalStore(tmp_path / "assets")

    def open_log() -> LogFile:
        waits.set()
        assert gate.wait(30)
        return LogFile.open(audit_folder(settings), "host", HMACKey(b"k"), store, SMALL)

    writer = AuditWriter(open_log)
    for _ in range(60):
        writer.append("request", who="shop")
    assert waits.wait(30)
    gate.set()
    writer.close()
    logged = entries(settings)
    assert [one["count"] for one in logged if one["event"] == "entries_lost"] == [10]
    assert len([one for one in logged if one["event"] == "request"]) == 50


def test_a_full_disk_loses_nothing_that_fits_later(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written of a batch is taken back, and the batch is written again."""
    store = LocalStore(tmp_path / "assets")
    log = LogFile.open(audit_folder(settings), "host", HMACKey(b"k"), store, SMALL)
    real, calls = os.write, []

    def write(descriptor: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real(descriptor, data[:10])
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        with pytest.raises(OSError, match="space"):
            log.append([{"event": "request"}])
        log.append([{"event": "request"}])
    log.close()
    assert [one["n"] for one in entries(settings)] == [0, 1, 2]
    (report,), _ = verify_logs(settings, store, [HMACKey(b"k")])
    assert report.problems == []


def test_five_thousand_entries_take_few_syncs(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests share them: one for each interval, and a few for files and checkpoints."""
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor))[1])
    store = LocalStore(tmp_path / "assets")
    options = LogOptions()
    writer = AuditWriter(
        lambda: LogFile.open(audit_folder(settings), "host", HMACKey(b"k"), store, options), sync_s=60
    )
    for _ in range(5000):
        writer.append("request", who="shop")
    writer.close()
    assert len([one for one in entries(settings) if one["event"] == "request"]) == 5000
    assert len(synced) < 40


def test_an_ed25519_key_signs_and_its_file_is_private(settings, tmp_path: Path) -> None:
    """The key of `OURVIDZ_AUDIT_KEY` alone counts."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path = tmp_path / "key.pem"
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o644)
    signed = load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path, OURVIDZ_AUDIT_KEY=path)
    with pytest.raises(SettingsError, match="chmod 600"):
        signing_keys(signed)
    path.chmod(0o600)
    (ed25519,) = signing_keys(signed)
    store = LocalStore(tmp_path / "assets")
    LogFile.open(audit_folder(signed), "host", ed25519, store, SMALL).close()
    (good,), _ = verify_logs(signed, store, [ed25519])
    (other,), _ = verify_logs(signed, store, signing_keys(settings))
    assert (good.problems, other.problems[0].kind) == ([], "no_checkpoint")


def test_shims_of_one_host_have_a_log_each(settings, tmp_path: Path) -> None:
    """A log belongs to one process; when it has ended another one continues it."""
    store = LocalStore(tmp_path / "assets")
    first, second = (
        LogFile.open(audit_folder(settings), "host", HMACKey(b"k"), store, SMALL) for _ in range(2)
    )
    assert first.id != second.id
    first.close()
    third = LogFile.open(audit_folder(settings), "host", HMACKey(b"k"), store, SMALL)
    assert third.id == first.id
    for log in (second, third):
        log.close()
