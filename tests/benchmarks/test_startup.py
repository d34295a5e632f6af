"""The tables of the benchmark of starts."""

from __future__ import annotations

from pathlib import Path

from benchmarks.startup import median_rows, read_phases, table


def test_the_phases_of_a_process_are_read_from_its_log(tmp_path: Path) -> None:
    """The last start counts; what libraries write is skipped."""
    (tmp_path / "sdxl.log").write_text(
        "a warning\n"
        '{"event": "process_ready", "part": "child", "imported_s": 9.0}\n'
        '{"event": "process_ready", "part": "parent", "imported_s": 0.5, "connected_s": 0.75}\n'
        '{"event": "process_ready", "part": "child", "imported_s": 2.5, "loaded_s": 3.0}\n'
    )
    (tmp_path / "web.log").write_text('{"event": "process_ready", "ready_s": 1.0}\n')
    assert read_phases(tmp_path) == {
        "sdxl": {"imported s": 0.5, "connected s": 0.75},
        "sdxl child": {"imported s": 2.5, "loaded s": 3.0},
        "web": {"ready s": 1.0},
    }


def test_the_table_has_the_medians_and_the_sums() -> None:
    """Phases overlap, so only processor time and memory have sums."""
    rounds = [
        {"web": {"ready s": 1.0, "processor s": 0.5, "PSS MiB": 60.0}, "up": {"PSS MiB": 40.0}},
        {"web": {"ready s": 3.0, "processor s": 0.7, "PSS MiB": 62.0}, "up": {"PSS MiB": 42.0}},
    ]
    assert table(median_rows(rounds)).splitlines()[2:] == [
        "| web |  |  |  | 2.00 | 0.60 | 61 |",
        "| up |  |  |  |  |  | 41 |",
        "| all |  |  |  |  | 0.60 | 102 |",
    ]
