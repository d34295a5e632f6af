"""Calibration of MagCache: ratios, measurement, and the files it is stored in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.progress import ProgressReporter
from ourvidz.pipelines.wan import calibration, reference_guidance
from ourvidz.pipelines.wan.calibration import MagnitudeCurve, fingerprint, load_or_measure
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.pipelines.helpers import no_progress

pytestmark = pytest.mark.model

CURVE = MagnitudeCurve(levels=(1.0, 0.5, 0.25), logs=(0.0, np.log(2.0), np.log(8.0)))


def test_ratios_are_interpolated_between_measured_noise_levels() -> None:
    """Linearly in the logarithm; constant outside the measured range."""
    assert CURVE.ratios([1.0, 0.5, 0.25]) == pytest.approx([1.0, 2.0, 4.0])
    assert CURVE.ratios([0.75, 0.5]) == pytest.approx([1.0, 2.0**0.5])
    assert CURVE.ratios([0.25, 0.1]) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(("steps", "shift"), [(10, 5.0), (25, 5.0), (25, 3.0)])
def test_one_measurement_gives_the_ratios_of_every_schedule(steps: int, shift: float) -> None:
    """On the trained checkpoint: the interpolated ratios are those measured on that schedule."""
    wan = WanPipeline(find_wan(None), cap=64, options=WanOptions(cache="mag", previews=False))
    wan.load()
    changes = {"steps": steps, "shift": shift, "seed": 5}
    job = calibration.CALIBRATION_JOB.model_copy(update=changes)
    plan = reference_guidance.plan_references(job)
    schedule = wan.timesteps(job, plan)
    assert wan._cache._magnitudes is not None
    interpolated = wan._cache._magnitudes.ratios(schedule.sigmas[:-1])
    wan._cache.name = None
    with torch.no_grad(), calibration.recording_changes(wan.components.pipe.transformer) as logs:
        wan.denoise(
            job,
            wan.encode(job),
            schedule,
            wan.latents(job, plan, ReferenceImages()),
            progress=ProgressReporter(no_progress),
        )
    measured = np.exp(np.diff(logs))
    assert np.abs(np.array(interpolated[1:]) - measured).max() < 0.1


def test_a_measured_curve_is_written_and_read_the_next_time(tmp_path: Path) -> None:
    """The folder is created."""
    calls: list[int] = []

    def measure() -> MagnitudeCurve:
        calls.append(1)
        return CURVE

    for _ in range(2):
        assert load_or_measure(tmp_path / "new", "one", measure) == CURVE
    assert calls == [1]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["one.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"levels": [1]}',
        '{"levels": "x", "logs": [1]}',
        '{"levels": [], "logs": []}',
        '{"levels": [1, 0.5], "logs": [0]}',
        '{"levels": [1, 0.5], "logs": [0, NaN]}',
        '{"levels": [0.5, 1], "logs": [0, 1]}',
    ],
)
def test_an_invalid_file_is_measured_again_and_replaced(tmp_path: Path, content: str) -> None:
    """A full disk in the past must not stop a worker."""
    (tmp_path / "one.json").write_text(content)
    assert load_or_measure(tmp_path, "one", lambda: CURVE) == CURVE
    assert load_or_measure(tmp_path, "one", lambda: pytest.fail("measured again")) == CURVE


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    """The worker runs, and measures again at its next start."""
    (tmp_path / "file").touch()
    assert load_or_measure(tmp_path / "file" / "below", "one", lambda: CURVE) == CURVE


def test_different_weights_have_different_fingerprints(wan: WanPipeline) -> None:
    """A calibration must not be used with another checkpoint."""
    transformer = wan.components.pipe.transformer
    expected = fingerprint(transformer)
    assert fingerprint(transformer) == expected
    weight = transformer.proj_out.weight
    original = weight.data[0, 0].clone()
    try:
        weight.data[0, 0] += 1
        assert fingerprint(transformer) != expected
    finally:
        weight.data[0, 0] = original
