"""The drawing of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import plot
from benchmarks.results import Run


def test_the_systems_of_a_run_are_drawn(tmp_path: Path) -> None:
    """A system without a figure has no bar for it."""
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra `bench`")
    run = Run("control_plane", "now", {"OurVidz": {"jobs/s": 50.0, "p50 ms": 4.0}, "peer": {"jobs/s": 100.0}})
    plot.systems(run, ("jobs/s", "p50 ms"), tmp_path / "plot.svg")
    assert "OurVidz" in (tmp_path / "plot.svg").read_text() or (tmp_path / "plot.svg").stat().st_size > 5000
