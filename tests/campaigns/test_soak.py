"""How the campaign of an hour judges what it has measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from campaigns.soak import RATE, Growth, compare, read_samples


def samples(**ends: float) -> list[tuple[float, dict[str, float]]]:
    """Samples of two minutes that are level but for the last half minute, where these quantities differ."""
    level = {"web memory": 100.0, "server bytes": 1000.0, "server keys": 5000.0, RATE: 100.0}
    return [(at, level | (ends if at >= 90 else {})) for at in range(0, 120, 5)]


@pytest.mark.parametrize(
    ("ends", "growing"),
    [
        ({}, []),
        ({"web memory": 104.0}, ["web memory"]),
        ({"web memory": 102.0}, []),
        ({"server bytes": 1060.0}, ["server bytes"]),
        ({"server bytes": 1060.0, RATE: 106.0}, []),
        ({"server bytes": 1100.0, RATE: 106.0}, ["server bytes"]),
        ({"web memory": 106.0, RATE: 106.0}, ["web memory"]),
        ({RATE: 70.0}, [RATE]),
    ],
)
def test_growth_beyond_three_percent_at_the_same_rate_is_told(
    ends: dict[str, float], growing: list[str]
) -> None:
    """What recent jobs hold is compared for each job a minute; memory of processes is not."""
    names = {name.replace("_", " "): value for name, value in ends.items()}
    growths = compare(samples(**names), minutes=2, baseline=0.5)
    assert [each.quantity for each in growths if not each.flat] == growing


def test_counts_that_pools_of_a_fixed_size_explain_are_no_growth() -> None:
    """Two more threads, or three more descriptors."""
    assert Growth("io threads", 8, 10).flat
    assert not Growth("io threads", 8, 11).flat


def test_kept_samples_are_read_again(tmp_path: Path) -> None:
    """A run of an hour need not be repeated to be judged again."""
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps({"seconds": at} | row) + "\n" for at, row in samples()))
    assert read_samples(file) == samples()
