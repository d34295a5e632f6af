"""The parts of `python -m campaigns.card`: what is done is not run again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from campaigns import card
from campaigns.card import Result

PART = Result(
    jobs=20,
    kills=1,
    seconds=9.5,
    loads=4,
    optimal=4,
    longest_wait_s=1.0,
    allowed_wait_s=26.0,
    out_of_memory=0,
    lost=0,
    failed=0,
    late=0,
)


def test_a_campaign_that_was_stopped_continues_after_its_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of other numbers or seeds are no parts of it."""
    seeds: list[int] = []

    def run(folder: Path, *, jobs: int, seed: int, turn_s: float) -> Result:
        assert folder.is_dir()
        if len(seeds) == 2:
            raise KeyboardInterrupt
        seeds.append(seed)
        return replace(PART, jobs=jobs, longest_wait_s=float(seed))

    monkeypatch.setattr(card, "run", run)
    numbers: dict[str, Any] = {"jobs": 50, "part": 20, "turn_s": 4.0}
    with pytest.raises(KeyboardInterrupt):
        card.run_in_parts(tmp_path, seed=1, **numbers)
    assert seeds == [1, 2]
    seeds.clear()
    result = card.run_in_parts(tmp_path, seed=1, **numbers)
    assert seeds == [3]
    assert (result.jobs, result.kills, result.loads) == (50, 3, 12)
    assert (result.longest_wait_s, result.allowed_wait_s, result.kept) == (3.0, 26.0, True)
    seeds.clear()
    with pytest.raises(KeyboardInterrupt):
        card.run_in_parts(tmp_path, seed=7, **numbers)
    assert seeds == [7, 8]
