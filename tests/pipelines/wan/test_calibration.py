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

KNOWN = MagnitudeCurve(levels=(1.0, 0.5, 0.25), logs=(0.0, np.log(2.0), np.log(8.0)))


def test_ratios_follow_from_the_flow_sigmas() -> None:
    """Between two levels that were measured the change grows evenly on its logarithm; outside it stays."""
    assert KNOWN.ratios([1.0, 0.5, 0.25]) == pytest.approx([1.0, 2.0, 4.0])
    assert KNOWN.ratios([0.75, 0.5]) == pytest.approx([1.0, 2.0**0.5])
    assert KNOWN.ratios([0.25, 0.1]) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(("steps", "shift"), [(10, 5.0), (25, 5.0), (25, 3.0)])
def test_one_calibration_serves_every_schedule(steps: int, shift: float) -> None:
    """What follows for a schedule is what measuring that schedule itself finds, on the trained checkpoint."""
    wan = WanPipeline(find_wan(None), cap=64, options=WanOptions(cache="mag", previews=False))
    wan.load()
    job = calibration.CALIBRATION_JOB.model_copy(update={"steps": steps, "shift": shift, "seed": 5})
    plan = reference_guidance.plan_references(job)
    schedule = wan.timesteps(job, plan)
    derived = wan._cache._magnitudes.ratios(schedule.sigmas[:-1])
    wan._cache.name = None
    with torch.no_grad(), calibration.recording_changes(wan.components.pipe.transformer) as logs:
        wan.denoise(
            job,
            wan.encode(job),
            schedule,
            wan.latents(job, plan, ReferenceImages()),
            progress=ProgressReporter(lambda *_: None),
        )
    measured = np.exp(np.diff(logs))
    assert np.abs(np.array(derived[1:]) - measured).max() < 0.1


def test_what_lies_in_the_folder_is_not_measured_again(tmp_path: Path) -> None:
    """And what does not is measured once and put there."""
    asked: list[int] = []

    def measured() -> MagnitudeCurve:
        asked.append(1)
        return KNOWN

    for _ in range(2):
        assert load_or_measure(tmp_path / "new", "one", measured) == KNOWN
    assert asked == [1]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["one.json"]


@pytest.mark.parametrize(
    "written",
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
def test_a_broken_file_is_measured_anew(tmp_path: Path, written: str) -> None:
    """A disk that was full once must not stop a worker."""
    (tmp_path / "one.json").write_text(written)
    assert load_or_measure(tmp_path, "one", lambda: KNOWN) == KNOWN
    assert load_or_measure(tmp_path, "one", lambda: pytest.fail("again")) == KNOWN


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    """The worker runs, and measures again when it starts again."""
    (tmp_path / "file").touch()
    assert load_or_measure(tmp_path / "file" / "below", "one", lambda: KNOWN) == KNOWN


def test_other_weights_have_another_fingerprint(wan: WanPipeline) -> None:
    """What was learned of one checkpoint must not be used on another."""
    transformer = wan.components.pipe.transformer
    before = fingerprint(transformer)
    assert fingerprint(transformer) == before
    weight = transformer.proj_out.weight
    kept_value = weight.data[0, 0].clone()
    try:
        weight.data[0, 0] += 1
        assert fingerprint(transformer) != before
    finally:
        weight.data[0, 0] = kept_value
