"""Beats of a process, and the monitor that watches them, on real files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ourvidz.liveness.beats import SUSPENDED_S, Beat, BeatMonitor, start_beating

HANG_S = 60.0


class Watched:
    """A folder of beats and its monitor, under a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.monitor = BeatMonitor(folder, hang_s=HANG_S)
        self.monitor.reset()
        self.now = 1000.0
        self._beats = 0

    def beat(self, part: str) -> None:
        """Let a part beat, by a clock that runs backwards."""
        self._beats += 1
        path = self.folder / part
        path.touch()
        os.utime(path, ns=(0, 10**18 - self._beats))

    def pass_s(self, seconds: float, *beating: str) -> str | None:
        """Let time pass in steps of five seconds; returns the silent part at the end."""
        silent = None
        for _ in range(int(seconds / 5)):
            self.now += 5
            for part in beating:
                self.beat(part)
            silent = self.monitor.silent_part(self.now)
        return silent


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "beats")


def test_a_part_that_beats_is_alive_whatever_the_clock_says(watched: Watched) -> None:
    """Its times may go back: only changes count."""
    assert watched.pass_s(600, "process") is None


def test_one_silent_part_is_enough(watched: Watched) -> None:
    """A worker's parent may answer while its child is frozen."""
    assert watched.pass_s(20, "process", "child") is None
    assert watched.pass_s(HANG_S, "process") is None
    assert watched.pass_s(5, "process") == "child"


def test_a_process_that_has_not_beaten_yet_does_not_hang(watched: Watched) -> None:
    """It may need minutes to import its libraries."""
    assert watched.pass_s(600) is None


def test_a_supervisor_that_was_suspended_itself_gives_everybody_time(watched: Watched) -> None:
    """With a container that was paused, all its processes were silent."""
    watched.pass_s(20, "process")
    watched.now += SUSPENDED_S + 1000
    assert watched.monitor.silent_part(watched.now) is None
    assert watched.pass_s(HANG_S) is None
    assert watched.pass_s(5) == "process"


def test_a_restarted_process_begins_without_beats(watched: Watched) -> None:
    """Else the beats of the one before would soon be silent."""
    watched.pass_s(20, "process", "child")
    watched.monitor.reset()
    assert watched.pass_s(600) is None


def test_beats_change_a_file_and_never_raise(tmp_path: Path) -> None:
    """A folder that is gone, or a process without a supervisor, is no reason to fail."""
    beat = Beat(tmp_path, "process")
    beat()
    assert (tmp_path / "process").exists()
    os.utime(tmp_path / "process", ns=(0, 0))
    beat()
    assert (tmp_path / "process").stat().st_mtime_ns == 0, "at most once a second"
    Beat(tmp_path / "gone", "process")()
    Beat(None, "process")()
    before = threading.active_count()
    start_beating(None, "process")
    assert threading.active_count() == before
