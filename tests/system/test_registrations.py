"""The short form of `python -m campaigns.registrations`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "campaigns.registrations", "--events", "6", "--pause", "0.2", "--seed", "2")

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_after_kills_the_backend_has_one_record_of_each_live_worker_and_no_other() -> None:
    """With real processes: workers, io and keepers die while requests are refused, lost and late."""
    campaign = subprocess.run(
        (sys.executable, *COMMAND), cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert campaign.stdout, campaign.stderr
    result = json.loads(campaign.stdout)
    assert (campaign.returncode, result["wrong"]) == (0, []), result
    assert result["requests"] >= 3, "the first three workers were registered"
