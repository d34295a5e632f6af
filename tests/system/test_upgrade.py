"""Upgrade and downgrade of a running installation, one group of processes at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns import upgrade
from campaigns.releases import HistoryMissing, unpack

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

JOBS = 10
"""Jobs at each step; the campaign runs 50."""


def test_a_rolling_upgrade_and_downgrade_keeps_every_promise() -> None:
    """Old and new processes serve the same jobs while a deploy lasts."""
    try:
        steps = list(upgrade.run(JOBS))
    except HistoryMissing as missing:
        pytest.skip(f"no upgrade is tested: {missing}")
    assert [step for step in steps if not step.kept] == []
    assert len(steps) == 6


def test_a_checkout_without_the_history_says_so(tmp_path: Path) -> None:
    """A shallow clone skips the test with a reason."""
    with pytest.raises(HistoryMissing, match="is not in this checkout"):
        unpack("0" * 40, tmp_path)
