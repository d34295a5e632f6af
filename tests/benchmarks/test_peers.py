"""The measurement of peers, in this interpreter instead of a venv of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.peers import measure
from benchmarks.peers.environments import SYSTEMS
from benchmarks.peers.table import PEERS
from ourvidz.embedded_redis import PrivateServer


def test_every_peer_has_a_script() -> None:
    """They are named in the table."""
    assert {peer.script for peer in PEERS.values()} <= {path.stem for path in SYSTEMS.glob("*.py")}


@pytest.mark.system
def test_a_queue_is_measured(
    start_redis: Callable[..., PrivateServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery is installed with the project; its no-op runs in a worker process."""
    monkeypatch.setattr(measure, "python_of", lambda name: Path(sys.executable))
    server = start_redis("--appendonly", "yes", "--appendfsync", "always")
    figures = measure.measure_peer("celery", probes=2, jobs=10, redis_url=server.url)
    assert figures["jobs/s"] > 0
    assert figures["submit to start: p50 ms"] > 0
    assert figures["server: round trips a job"] > 3
