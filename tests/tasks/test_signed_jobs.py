"""Signed assets, from the settings to the callback, in one process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ourvidz.testing import CallbackRecorder, eager

JOB: dict[str, Any] = {
    "id": "one",
    "type": "sdxl_image_fast",
    "prompt": "a hill above a lake",
    "user_id": "me",
    "config": {"steps": 1, "width": 64, "height": 64},
}


def test_a_configured_certificate_signs_the_assets_of_a_job(
    tmp_path: Path, ourvidz_callbacks: CallbackRecorder, make_chain: Any
) -> None:
    """Two variables are enough. The images of a batch are signed by several threads."""
    from c2pa import Reader

    with eager(tmp_path, ourvidz_callbacks, **make_chain().variables(tmp_path)) as system:
        system.submit(JOB | {"config": {**JOB["config"], "num_images": 6}})
        assets = system.callbacks.of("one")[-1].payload["assets"]
        stored = [system.control.store.get(asset["url"]) for asset in assets]
        counts = system.control.ledger.counters()
    assert [asset["metadata"]["c2pa"] for asset in assets] == [True] * 6
    assert "assets.unsigned" not in counts
    for file in stored:
        with Reader("image/png", io.BytesIO(file)) as reader:
            assert reader.get_validation_state() == "Valid"
            manifest = reader.json()
        assert "hill" not in manifest, "the prompt is in the manifest"
        assert '"me"' not in manifest, "the user id is in the manifest"


def test_a_certificate_that_cannot_sign_fails_the_job_before_generation(
    tmp_path: Path, ourvidz_callbacks: CallbackRecorder, make_chain: Any
) -> None:
    """The caller sees that the worker is not set up, and no paths."""
    variables = make_chain(days=9).variables(tmp_path)
    with eager(tmp_path, ourvidz_callbacks, **variables) as system:
        system.submit(JOB)
        callback = system.callbacks.of("one")[-1].payload
    assert callback["status"] == "failed"
    assert "OURVIDZ_C2PA" not in str(callback)
