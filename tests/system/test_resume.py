"""Jobs that outlive their worker: `python -m campaigns.resume` in short, and with whole worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from campaigns.resume import Result

ROOT = Path(__file__).parents[2]
COMMAND = ("-m", "campaigns.resume", "--kills", "6", "--interval", "0.1", "--json")
PROGRESS = 20.0
"""Percent at which a worker is killed or stopped: with most of the work ahead."""

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_images_and_clips_of_killed_attempts_have_the_same_bytes() -> None:
    """The long form kills fifty."""
    campaign = subprocess.run(
        (sys.executable, *COMMAND), cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    explanation = f"{campaign.stdout}\n{campaign.stderr}"
    assert campaign.returncode == 0, explanation
    result = Result(**json.loads(campaign.stdout))
    assert result.kept, explanation
    assert result.kills == 6, explanation
    assert result.resumed > 0, explanation


def test_a_killed_and_a_stopped_worker_are_continued(stack: Callable[..., Any]) -> None:
    """Both with the same bytes as the job that nobody disturbed. A stop costs no attempt."""
    variables = {"OURVIDZ_CHECKPOINT_S": "0.05", "OURVIDZ_DRAIN_S": "0.2"}
    config = {"steps": 60, "num_images": 3, "width": 128, "height": 128, "seed": 3}
    with stack(env=variables) as running:

        def pictures(job_id: str) -> tuple[list[bytes], dict[str, Any]]:
            running.wait_done(job_id)
            outcome = running.record(job_id).outcome
            assert outcome is not None
            assets = running.state_dir / "assets"
            return [(assets / asset.key).read_bytes() for asset in outcome.assets], outcome.metadata

        def start(job_id: str) -> None:
            running.submit(job_id, type="sdxl_image_high", config=config)
            running.wait_for(lambda: running.record(job_id).progress > PROGRESS, f"{job_id} did not start")

        start("undisturbed")
        expected, metadata = pictures("undisturbed")
        assert "resumed_from_step" not in metadata

        start("killed")
        os.kill(running.pool_child(), signal.SIGKILL)
        images, metadata = pictures("killed")
        assert images == expected
        assert metadata["resumed_from_step"] > 0
        assert running.record("killed").attempt == 2

        start("stopped")
        running.kill("sdxl", signal.SIGTERM)
        images, metadata = pictures("stopped")
        assert images == expected
        assert metadata["resumed_from_step"] > 0
        assert running.record("stopped").attempt == 1
        assert not any((running.state_dir / "assets" / "checkpoints" / "jobs").iterdir())
