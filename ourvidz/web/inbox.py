"""Stores the deliveries of the local callback receiver in an SQLite file."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

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
_INSERT = "INSERT INTO deliveries (received_at, job_id, headers, payload, verified) VALUES (?, ?, ?, ?, ?)"
_DELETE_OLD = "DELETE FROM deliveries WHERE id <= ?"
_SELECT_LAST = "SELECT * FROM deliveries {where} ORDER BY id DESC LIMIT :limit"


class Inbox:
    """Received callbacks in order of arrival, repeated deliveries included. Threads and processes may share
    one file."""

    def __init__(self, path: Path, *, max_deliveries: int = MAX_DELIVERIES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._max_deliveries = max_deliveries
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None
        )
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute(_CREATE_TABLE)
        self._database.execute(_CREATE_INDEX)

    def add(
        self, payload: Mapping[str, Any], headers: Mapping[str, str], *, received_at: str, verified: bool
    ) -> None:
        """Store one delivery; the values of secret headers are redacted. `received_at` is ISO 8601."""
        redacted = {
            name.lower(): REDACTED if name.lower() in SECRET_HEADERS else value
            for name, value in headers.items()
        }
        row = (received_at, str(payload["job_id"]), json.dumps(redacted), json.dumps(payload), int(verified))
        with self._lock, closing(self._database.cursor()) as cursor:
            cursor.execute(_INSERT, row)
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

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            self._database.close()
