"""Figures, medians and the comparison of two runs."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Run, comparison_table, medians, percentiles, systems_table


def test_a_figure_that_only_some_rounds_have_gets_the_median_of_those() -> None:
    """Commands are traced in the last round only."""
    assert medians([{"jobs/s": 10}, {"jobs/s": 30, "memory": 5}, {"jobs/s": 20}]) == {
        "jobs/s": 20,
        "memory": 5,
    }


def test_the_percentiles_are_those_of_the_values() -> None:
    """100 values: the median lies between the two in the middle."""
    assert percentiles([float(value) for value in range(1, 101)]) == (50.5, 99.01)


def test_a_stored_run_is_compared_figure_by_figure(tmp_path: Path) -> None:
    """Figures that only one of the runs has are shown without a ratio."""
    before = Run("control_plane", "before", {"OurVidz": {"jobs/s": 40.0, "io ms": 9.0}})
    before.write(tmp_path / "before.json")
    after = Run("control_plane", "after", {"OurVidz": {"jobs/s": 80.0, "sender ms": 3.0}})
    lines = comparison_table(Run.read(tmp_path / "before.json"), after).splitlines()
    assert [line.split() for line in lines if line.startswith(("jobs/s", "io", "sender"))] == [
        ["jobs/s", "40", "80", "2.00"],
        ["sender", "ms", "–", "3", "–"],
        ["io", "ms", "9", "–", "–"],
    ]


def test_the_ratios_of_peers_are_to_the_first_system() -> None:
    """A figure that a peer does not have is left empty."""
    systems = {"OurVidz": {"jobs/s": 50.0, "p50 ms": 4.0}, "peer": {"jobs/s": 100.0}}
    last = systems_table(systems, ["jobs/s", "p50 ms"]).splitlines()[-1]
    assert last.split() == ["peer", "100.0", "(2.00x)", "–"]
