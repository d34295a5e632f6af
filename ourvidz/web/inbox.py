"""What the local callback receiver got, kept in a file so that it survives a restart."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

KEPT = 10_000
"""Deliveries that are kept; older ones make room."""
BUSY_S = 10.0
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "x-api-key", "apikey", "cookie"})
REDACTED = "(redacted)"

_TABLE = """
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    received_at TEXT NOT NULL,
    job_id TEXT NOT NULL,
    headers TEXT NOT NULL,
    payload TEXT NOT NULL,
    verified INTEGER NOT NULL
) STRICT
"""
_INDEX = "CREATE INDEX IF NOT EXISTS deliveries_by_job ON deliveries (job_id, id)"
_KEEP = "INSERT INTO deliveries (received_at, job_id, headers, payload, verified) VALUES (?, ?, ?, ?, ?)"
_LAST = "SELECT * FROM deliveries {where} ORDER BY id DESC LIMIT :limit"


class Inbox:
    """Every delivery in the order of arrival, also those of one event. Threads and processes may share it."""

    def __init__(self, path: Path, *, kept: int = KEPT) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._kept = kept
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute(_TABLE)
        self._database.execute(_INDEX)

    def keep(
        self, payload: Mapping[str, Any], headers: Mapping[str, str], *, received_at: str, verified: bool
    ) -> None:
        """Keep one delivery, its headers without their secrets."""
        shown = {
            name.lower(): REDACTED if name.lower() in SECRET_HEADERS else value
            for name, value in headers.items()
        }
        row = (received_at, str(payload["job_id"]), json.dumps(shown), json.dumps(payload), int(verified))
        with self._lock, closing(self._database.cursor()) as cursor:
            cursor.execute(
                _KEEP,
                row,
            )
            cursor.execute("DELETE FROM deliveries WHERE id <= ?", ((cursor.lastrowid or 0) - self._kept,))

    def last(self, *, job_id: str | None = None, limit: int) -> list[dict[str, Any]]:
        """The last `limit` deliveries, of one job or of all, oldest first."""
        query = _LAST.format(where="WHERE job_id = :job_id" if job_id else "")
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
