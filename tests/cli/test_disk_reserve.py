"""The reserve on a real disk that is full: a small tmpfs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ourvidz.cli import disk_reserve
from ourvidz.cli.disk_reserve import DiskReserve
from tests.conftest import MIB


@pytest.fixture
def disk(small_disk, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk of 24 MiB, with limits to match."""
    monkeypatch.setattr(disk_reserve, "MIN_DISK_BYTES", 4 * MIB)
    monkeypatch.setattr(disk_reserve, "RELEASE_BELOW_BYTES", 2 * MIB)
    folder: Path = small_disk(24)
    return folder


def test_the_reserve_is_released_when_the_disk_is_full_and_restored_afterwards(disk: Path) -> None:
    """Its space must really be taken, and really be free."""
    notes: list[str] = []
    reserve = DiskReserve(disk / "reserve", notify=notes.append, size=8 * MIB)
    reserve.check()
    assert shutil.disk_usage(disk).free < 17 * MIB
    (disk / "other").write_bytes(bytes(15 * MIB))
    reserve.check()
    assert not (disk / "reserve").exists()
    assert shutil.disk_usage(disk).free > 8 * MIB
    reserve.check()
    assert not (disk / "reserve").exists()
    (disk / "other").unlink()
    reserve.check()
    assert (disk / "reserve").stat().st_size == 8 * MIB
    assert ["released" in notes[0], "again" in notes[1]] == [True, True]


def test_a_disk_that_is_full_from_the_start_gets_no_reserve(disk: Path) -> None:
    """There is nothing to reserve, and nothing is left behind."""
    (disk / "other").write_bytes(bytes(20 * MIB))
    DiskReserve(disk / "reserve", notify=print, size=8 * MIB).check()
    assert [path.name for path in disk.iterdir()] == ["other"]
