"""The audit log that the settings describe, and the verification of the logs of this state directory."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from ourvidz.auditing.checkpoints import FOLDER
from ourvidz.auditing.logfile import LATEST, LogFile, LogOptions, host_part
from ourvidz.auditing.segments import segments_in
from ourvidz.auditing.signing import HMACKey, SigningKey, read_ed25519, read_or_make_secret
from ourvidz.auditing.uploads import PENDING, CheckpointStore, checkpoint_keys
from ourvidz.auditing.verification import LogReport, verify_log
from ourvidz.auditing.writer import AuditWriter
from ourvidz.errors import NotFound
from ourvidz.settings import Settings
from ourvidz.settings.kinds import reveal_all

SECRET_FILE = "checkpoint-secret"
"""In the folder of the logs: signs where the settings have neither a key nor callback secrets."""


def audit_folder(settings: Settings) -> Path:
    """The folder of the logs of this state directory."""
    return settings.state_dir / "audit"


def audit_writer(settings: Settings, store: CheckpointStore) -> AuditWriter | None:
    """The writer of this process; None where the log is off. Raises `SettingsError` for a wrong key."""
    if not settings.audit_log:
        return None
    options = LogOptions(
        settings.audit_segment_bytes, settings.audit_max_bytes, settings.audit_checkpoint_entries
    )
    if settings.audit_key:
        read_ed25519(settings.audit_key, "OURVIDZ_AUDIT_KEY")

    def open_log() -> LogFile:
        key = signing_keys(settings)[0]
        return LogFile.open(audit_folder(settings), socket.gethostname(), key, store, options)

    return AuditWriter(open_log, sync_s=settings.audit_sync_s)


def signing_keys(settings: Settings, secrets: Sequence[str] = ()) -> list[SigningKey]:
    """The keys whose signatures count; the first one signs. The key of `OURVIDZ_AUDIT_KEY`, else one derived
    from each callback secret, else the secret that this state directory keeps. `secrets` stand for callback
    secrets where the settings have none. Raises `SettingsError`."""
    if settings.audit_key:
        return [read_ed25519(settings.audit_key, "OURVIDZ_AUDIT_KEY")]
    shared = reveal_all(settings.callback_secrets) or tuple(secrets)
    if shared:
        return [HMACKey(secret.encode()) for secret in shared]
    return [HMACKey(read_or_make_secret(audit_folder(settings) / SECRET_FILE))]


def verify_logs(
    settings: Settings, store: CheckpointStore, keys: Sequence[SigningKey]
) -> tuple[list[LogReport], list[str]]:
    """Verify each log of this state directory, and each that this host has signed checkpoints of. Also
    returns the ids of logs that only the storage knows: those of other hosts. Raises `StorageError`."""
    root = audit_folder(settings)
    here = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    stored = set(store.folders(FOLDER))
    own = f"{host_part(socket.gethostname())}."
    expected = here | {log_id for log_id in stored if log_id.startswith(own)}
    reports = [_verify(root / log_id, store, keys) for log_id in sorted(expected)]
    return reports, sorted(stored - expected)


def _verify(folder: Path, store: CheckpointStore, keys: Sequence[SigningKey]) -> LogReport:
    """Verify one log. Checkpoints are read first, so that a log may grow meanwhile."""
    notes = dict(_notes(folder, store))
    segments = {}
    for path in segments_in(folder):
        try:
            segments[path.name] = path.read_bytes()
        except FileNotFoundError:
            # Dropped meanwhile; that is an entry of the segments that are read after it.
            continue
    return verify_log(folder.name, segments, notes, keys)


def _notes(folder: Path, store: CheckpointStore) -> Iterable[tuple[str, bytes]]:
    paths = [*sorted((folder / PENDING).glob("[0-9]*")), folder / LATEST]
    for path in paths:
        try:
            yield path.name, path.read_bytes()
        except FileNotFoundError:
            continue
    for key in checkpoint_keys(store, folder.name):
        try:
            yield key.rpartition("/")[2], store.get(key)
        except NotFound:
            continue
