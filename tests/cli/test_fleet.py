"""`ourvidz fleet simulate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ourvidz.cli.fleet import fleet
from ourvidz.cli.main import cli
from ourvidz.settings import settings


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Defaults, whatever the environment of the tests is."""
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()


def run(*arguments: str) -> str:
    """Run the command; returns its standard output."""
    result = CliRunner().invoke(fleet, ["simulate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_day_goes_from_one_worker_to_eight_and_to_none() -> None:
    """What an operator wants to see before trusting an autoscaler with cards."""
    report = json.loads(run("--pattern", "day", "--json"))
    assert report["workers"][:2] == [[0.0, 0], [report["workers"][1][0], 1]]
    assert (report["most_workers"], report["last_workers"], report["busy_workers_stopped"]) == (8, 0, 0)
    assert report["wait_p95_s"] < report["policy"]["target_wait_s"] == 60.0


def test_the_table_has_a_row_for_each_hour() -> None:
    """With the wait that nineteen of twenty jobs did not exceed."""
    printed = run()
    assert "14:00" in printed
    assert "########" in printed
    assert "p95 " in printed
    assert "0 of them busy" in printed


def test_a_longer_target_wait_takes_fewer_hours() -> None:
    """The trade that the option is for."""
    short, long = (json.loads(run("--target-wait", wait, "--json")) for wait in ("30", "600"))
    assert long["worker_hours"] < short["worker_hours"]
    assert long["wait_p95_s"] > short["wait_p95_s"]


@pytest.mark.parametrize("content", ["at_s,type\n", "at_s,type,run_s\n\n\n"])
def test_a_file_without_arrivals_is_an_error(tmp_path: Path, content: str) -> None:
    """Nothing was printed, with the exit status of a success: a query that found no rows looks like that."""
    file = tmp_path / "day.csv"
    file.write_text(content)
    result = CliRunner().invoke(cli, ["fleet", "simulate", "--arrivals", str(file)])
    assert result.exit_code == 1
    assert "The file has no arrivals" in result.stderr


def test_arrivals_of_a_file_are_replayed_by_queue(tmp_path: Path) -> None:
    """A log of a real day; each queue has its own fleet."""
    file = tmp_path / "day.csv"
    file.write_text("at_s,type,run_s\n0,sdxl_image_fast,25\n10,video_fast,170\n3600,sdxl_image_fast,25\n")
    reports = [json.loads(line) for line in run("--arrivals", str(file), "--json").splitlines()]
    assert [(report["queue"], report["jobs"]) for report in reports] == [("sdxl_queue", 2), ("wan_queue", 1)]
    assert "wan_queue: 1 jobs" in run("--arrivals", str(file), "--queue", "wan_queue")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--min", "9"], "more than --max 8"),
        (["--target-wait", "0"], "target-wait"),
        (["--pattern", "week"], "pattern"),
        (["--arrivals", "-", "--pattern", "day"], "--arrivals or --pattern"),
        (["--arrivals", "-", "--queue", "wan_queue"], "no jobs of wan_queue"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], part: str) -> None:
    """And a status of 2, as for other commands."""
    result = CliRunner().invoke(fleet, ["simulate", *arguments], input="at_s,type\n1,sdxl_image_fast\n")
    assert result.exit_code == 2
    assert part in result.stderr
