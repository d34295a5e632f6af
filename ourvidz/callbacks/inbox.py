"""Stores the deliveries of the local callback receiver in an SQLite file."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from ourvidz.jobs.catalog import READ_BUCKETS, WRITE_BUCKETS

FILE_NAME = "inbox.sqlite3"
"""Name of the file in the state directory."""
MAX_DELIVERIES = 10_000
"""Deliveries that are stored; the oldest are deleted first."""
BUSY_TIMEOUT_S = 10.0
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key", "apikey", "cookie"})
REDACTED = "(redacted)"

_CREATE_TABLE = """
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    received_at TEXT NOT NULL,
    job_id TEXT NOT NULL,
    headers TEXT NOT NULL,
    payload TEXT NOT NULL,
    verified INTEGER NOT NULL
) STRICT
"""
_CREATE_INDEX = "CREATE INDEX IF NOT EXISTS deliveries_by_job ON deliveries (job_id, id)"
_ADD_WEBHOOK_ID = "ALTER TABLE deliveries ADD COLUMN webhook_id TEXT"
_INDEX_WEBHOOK_IDS = "CREATE UNIQUE INDEX IF NOT EXISTS deliveries_by_webhook_id ON deliveries (webhook_id)"
_INSERT = """
INSERT OR IGNORE INTO deliveries (received_at, job_id, headers, payload, verified, webhook_id)
VALUES (?, ?, ?, ?, ?, ?)
"""
_DELETE_OLD = "DELETE FROM deliveries WHERE id <= ?"
_SELECT_LAST = "SELECT * FROM deliveries {where} ORDER BY id DESC LIMIT :limit"

_BUCKETS = "|".join(map(re.escape, dict.fromkeys((*WRITE_BUCKETS, *READ_BUCKETS))))


class Inbox:
    """Received callbacks in order of arrival; a signed one that is repeated is stored once. Threads
    and processes may share one file."""

    def __init__(self, path: Path, *, max_deliveries: int = MAX_DELIVERIES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        self._max_deliveries = max_deliveries
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None
        )
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        # What is deleted is overwritten.
        self._database.execute("PRAGMA secure_delete = ON")
        self._database.execute(_CREATE_TABLE)
        self._database.execute(_CREATE_INDEX)
        with suppress(sqlite3.OperationalError):
            # Files of earlier releases lack the column; another process may add it first.
            self._database.execute(_ADD_WEBHOOK_ID)
        self._database.execute(_INDEX_WEBHOOK_IDS)

    def add(
        self,
        payload: Mapping[str, Any],
        headers: Mapping[str, str],
        *,
        received_at: str,
        verified: bool,
        webhook_id: str | None = None,
    ) -> None:
        """Store one delivery; the values of secret headers are redacted. `received_at` is ISO 8601. One with
        a `webhook_id` that is stored already changes nothing: pass an id only if its signature is valid."""
        redacted = {
            name.lower(): REDACTED if name.lower() in SECRET_HEADERS else value
            for name, value in headers.items()
        }
        row = (
            received_at,
            str(payload["job_id"]),
            json.dumps(redacted),
            json.dumps(payload),
            int(verified),
            webhook_id,
        )
        with self._lock, closing(self._database.cursor()) as cursor:
            cursor.execute(_INSERT, row)
            if cursor.rowcount > 0:
                cursor.execute(_DELETE_OLD, ((cursor.lastrowid or 0) - self._max_deliveries,))

    def last(self, *, job_id: str | None = None, limit: int) -> list[dict[str, Any]]:
        """The last `limit` deliveries, of one job or of all, oldest first."""
        query = _SELECT_LAST.format(where="WHERE job_id = :job_id" if job_id else "")
        with self._lock:
            rows = self._database.execute(query, {"job_id": job_id, "limit": limit}).fetchall()
        return [
            {
                "received_at": row["received_at"],
                "headers": json.loads(row["headers"]),
                "payload": json.loads(row["payload"]),
                "verified": bool(row["verified"]),
            }
            for row in reversed(rows)
        ]

    def delete_jobs(self, job_ids: Iterable[str]) -> int:
        """Delete the deliveries of these jobs, from the file too. Returns how many. Safe to call twice."""
        with self._lock, closing(self._database.cursor()) as cursor:
            cursor.executemany(
                "DELETE FROM deliveries WHERE job_id = ?", [(job_id,) for job_id in set(job_ids)]
            )
            deleted = max(0, cursor.rowcount)
            if deleted:
                # Until then the write-ahead log has them.
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return deleted

    def delete_user(self, user_id: str, job_ids: Iterable[str] = ()) -> int:
        """Delete the deliveries of these jobs, and all that name the user or a file of the user. The file is
        written anew: what earlier releases deleted is gone too. Returns how many."""
        folder = re.compile(rf"(?:^|/)(?:{_BUCKETS})/{re.escape(user_id)}/")
        named = {
            str(row["payload"]["job_id"])
            for row in self.last(limit=self._max_deliveries)
            if _names_user(row["payload"], user_id, folder)
        }
        deleted = self.delete_jobs({*job_ids, *named})
        with self._lock:
            self._database.execute("VACUUM")
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return deleted

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            self._database.close()


def _names_user(payload: Mapping[str, Any], user_id: str, folder: re.Pattern[str]) -> bool:
    """Whether a callback names a user, or in its assets a file in the folder of one."""
    metadata, assets = payload.get("metadata"), payload.get("assets")
    if user_id in (payload.get("user_id"), metadata.get("user_id") if isinstance(metadata, dict) else None):
        return True
    return folder.search(json.dumps(assets).replace('"', "/")) is not None
