"""The page for operators shows what workers report of ended jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.telemetry import documents
from tests.factories import image_job

PAGE = "docs/reference/operators.md"

OpenPage = Callable[[str], Any]


def test_the_example_is_what_is_sent(page: OpenPage, make_ledger: Callable[..., Ledger]) -> None:
    """Authors of receivers write them from it."""
    (text,) = (block.text for block in page(PAGE).blocks("json") if "worker_metrics" in block.text)
    ledger = make_ledger()
    ledger.register(image_job("lighthouse", user_id="ada"), priority=6)
    claim = ledger.claim("lighthouse", 1, worker_id="sdxl@gpu-host-gpu0", lease_s=10, token="t")
    assert claim is not None
    asset = Asset(type="image", key="a/b/c/0.png", metadata={"file_size_bytes": 2048000})
    metadata = {"generation_time": 3.214, "vram_used": 8192}
    outcome = Outcome(status="completed", assets=(asset,), metadata=metadata)
    assert json.loads(text) == {
        "worker_metrics": [documents.worker_metrics(claim, outcome, at=1795867200.0)],
        "completion_stats": [documents.completion_stats(claim, outcome, at=1795867200.0)],
    }
