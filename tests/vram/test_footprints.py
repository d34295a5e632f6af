"""Working memory of jobs: learned, kept, and never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from ourvidz.vram.footprints import Footprints, kind_of


def test_a_measured_kind_of_job_is_remembered_over_restarts(tmp_path: Path) -> None:
    """The largest measurement counts, with a margin; an unknown kind takes a share of the weights."""
    file = tmp_path / "state" / "footprints.json"
    first, second = Footprints(file), Footprints(file)
    assert first.work_mib("sdxl:20", 1000) == 250
    first.learn("sdxl:20", 400)
    first.learn("sdxl:20", 100)
    second.learn("wan:22", 900)
    assert Footprints(file).work_mib("sdxl:20", 1000) == 440
    assert Footprints(file).work_mib("wan:22", 1000) == 990


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 100_000, '{"a": "x"}', '{"a": 1e999}', "\x00"], ids=range(6)
)
def test_a_damaged_file_costs_only_what_it_knew(tmp_path: Path, content: str) -> None:
    """It is replaced with the next measurement."""
    file = tmp_path / "footprints.json"
    file.write_text(content)
    footprints = Footprints(file)
    assert footprints.work_mib("a", 8) == 2
    footprints.learn("a", 10)
    assert Footprints(file).work_mib("a", 8) == 11


def test_a_folder_that_cannot_be_written_stops_no_job(tmp_path: Path) -> None:
    """The measurement counts until the process ends."""
    (tmp_path / "state").write_text("a file, not a folder")
    footprints = Footprints(tmp_path / "state" / "footprints.json")
    footprints.learn("a", 10)
    assert footprints.work_mib("a", 8) == 11


def test_alike_jobs_are_of_one_kind() -> None:
    """Pixels times pictures, up to the next power of two."""
    assert kind_of("sdxl", pixels=1024 * 1024, count=1) == kind_of("sdxl", pixels=1000 * 1000, count=1)
    assert kind_of("sdxl", pixels=1024 * 1024, count=1) != kind_of("sdxl", pixels=1024 * 1024, count=3)
    assert kind_of("sdxl", pixels=64, count=1) != kind_of("wan", pixels=64, count=1)


def test_what_the_device_can_give_bounds_guesses_and_what_is_learned(tmp_path: Path) -> None:
    """No job is refused for a guess, nor for what a job that succeeded tried to take first."""
    footprints = Footprints(tmp_path / "footprints.json")
    assert footprints.work_mib("sdxl:20", 1000, at_most=100) == 100
    footprints.learn("sdxl:20", 5000, at_most=110)
    assert footprints.work_mib("sdxl:20", 1000, at_most=110) <= 110
