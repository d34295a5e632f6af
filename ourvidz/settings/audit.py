"""Settings of the audit log."""

from __future__ import annotations

from ourvidz.settings.kinds import LocalPath, Topic, env


class AuditSettings(Topic):
    """The tamper-evident log of requests that each shim keeps."""

    audit_log: bool = env("OURVIDZ_AUDIT_LOG", True)
    audit_key: LocalPath | None = env("OURVIDZ_AUDIT_KEY")
    """PEM file of an Ed25519 private key that signs the checkpoints of the log."""
    audit_sync_s: float = env("OURVIDZ_AUDIT_SYNC_S", 1.0, gt=0, le=60)
    """The longest time in seconds for which an entry is not durable."""
    audit_checkpoint_entries: int = env("OURVIDZ_AUDIT_CHECKPOINT_ENTRIES", 1000, ge=1, le=100_000)
    audit_segment_bytes: int = env("OURVIDZ_AUDIT_SEGMENT_BYTES", 16 << 20, ge=4096)
    audit_max_bytes: int = env("OURVIDZ_AUDIT_MAX_BYTES", 1 << 30, ge=8192)
    """The size of one log, above which its oldest segments are deleted."""
