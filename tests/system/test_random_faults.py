"""The short form of `python -m campaigns.faults`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from campaigns.faults import BROKEN

ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "campaigns.faults", "--jobs", "120", "--events", "60", "--pause", "0.2", "--json")

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_sixty_random_faults_break_no_promise() -> None:
    """Processes, connections, the server, its clock, the disk and the receiver fail under load."""
    campaign = subprocess.run(
        (sys.executable, *COMMAND), cwd=ROOT, capture_output=True, text=True, timeout=800
    )
    explanation = f"{campaign.stdout}\n{campaign.stderr}"
    assert campaign.stdout, explanation
    (result,) = json.loads(campaign.stdout)
    assert (result["jobs"], result["events"]) == (120, 60), explanation
    assert {name: result[name] for name in BROKEN} == dict.fromkeys(BROKEN, 0), explanation
    assert campaign.returncode == 0, explanation
