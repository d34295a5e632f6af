"""The short form of `python -m campaigns.card`, and the least number of loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from campaigns.card import fewest_loads

ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "campaigns.card", "--jobs", "40", "--turn", "2", "--json")

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


def job(model: str, pid: int = 1) -> dict[str, Any]:
    """One job as the models note it."""
    return {"what": "job", "model": model, "pid": pid}


def test_three_families_share_one_card() -> None:
    """55 GiB of models on a budget of 47, two killed workers, and a program that takes memory meanwhile."""
    campaign = subprocess.run(
        (sys.executable, *COMMAND), cwd=ROOT, capture_output=True, text=True, timeout=380
    )
    explanation = f"{campaign.stdout}\n{campaign.stderr}"
    assert campaign.stdout, explanation
    result = json.loads(campaign.stdout)
    broken = {name: result[name] for name in ("out_of_memory", "lost", "failed", "late")}
    assert broken == dict.fromkeys(broken, 0), explanation
    assert result["kills"] >= 1, explanation
    # A few jobs say little about loads: the long form compares them with the least number.
    assert result["optimal"] <= result["loads"] <= result["optimal"] + 2 * (1 + result["kills"]), explanation


def test_the_least_number_of_loads_is_that_of_belady() -> None:
    """What is needed last leaves; a model of a process that was replaced is loaded again."""
    assert fewest_loads([job("sdxl"), job("wan"), job("wan"), job("sdxl")]) == 2
    assert fewest_loads([job("wan"), job("qwen_instruct"), job("sdxl"), job("wan")]) == 3
    assert fewest_loads([job("sdxl"), job("wan"), job("qwen_instruct"), job("sdxl"), job("wan")]) == 4
    assert fewest_loads([job("sdxl"), job("sdxl", pid=2)]) == 2
