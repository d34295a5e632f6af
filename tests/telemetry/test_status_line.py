"""The periodic status line of a GPU worker."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from ourvidz.telemetry import status_line
from ourvidz.telemetry.status_line import StatusLine

PATIENCE_S = 20.0


def test_lines_are_written_in_intervals_also_after_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that could not be asked once may answer again."""
    lines: list[dict[str, Any]] = []
    enough = threading.Event()
    monkeypatch.setattr(status_line._log, "exception", lambda event: None, raising=False)
    monkeypatch.setattr(status_line._log, "info", lambda event, **fields: lines.append(fields), raising=False)
    asked = 0

    def read() -> Mapping[str, Any]:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise OSError("the driver does not answer")
        if asked == 4:
            enough.set()
        return {"vram_used": 100 + asked}

    line = StatusLine(read, period_s=0.01)
    line.start()
    assert enough.wait(PATIENCE_S)
    line.stop()
    assert [fields["vram_used"] for fields in lines[:2]] == [101, 103]
    assert all(fields["uptime_s"] >= 0 for fields in lines)
