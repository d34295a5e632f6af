"""Time of a device by stage, and the loading that jobs share."""

from __future__ import annotations

import pytest

from ourvidz.pipelines.stage_clock import StageClock, measured


class Pipeline:
    """A pipeline whose stages take the seconds that they are called with."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clock = StageClock(lambda: self.now)

    @measured("load")
    def load(self, seconds: float) -> None:
        self.now += seconds

    @measured("denoise")
    def denoise(self, seconds: float, *, fail: bool = False) -> float:
        self.now += seconds
        if fail:
            raise RuntimeError
        return seconds

    @measured("other")
    def generate(self, seconds: float, *, fail: bool = False) -> None:
        self.now += 1
        self.denoise(seconds, fail=fail)
        self.now += 1


def test_a_stage_counts_what_no_inner_stage_does() -> None:
    """So the stages together are the time from the beginning to the end."""
    pipeline = Pipeline()
    pipeline.generate(5)
    assert pipeline.clock.take() == {"other": 2, "denoise": 5}
    assert pipeline.clock.take() == {}


def test_time_outside_of_stages_does_not_count() -> None:
    """An idle worker uses nothing."""
    pipeline = Pipeline()
    pipeline.generate(1)
    pipeline.now += 100
    pipeline.generate(1)
    assert sum(pipeline.clock.take().values()) == 6


def test_a_stage_that_fails_counts() -> None:
    """The device was busy with it all the same."""
    pipeline = Pipeline()
    with pytest.raises(RuntimeError):
        pipeline.generate(5, fail=True)
    assert pipeline.clock.take() == {"other": 1, "denoise": 5}
    pipeline.generate(1)
    assert pipeline.clock.take() == {"other": 2, "denoise": 1}


def test_jobs_share_the_loading() -> None:
    """The first job after a load of ten minutes must not pay for it alone; nothing of it is lost."""
    pipeline = Pipeline()
    pipeline.load(10)
    loads = []
    for _ in range(5):
        pipeline.generate(1)
        loads.append(pipeline.clock.take().get("load", 0))
    assert loads == [3, 3, 3, 1, 0]
    assert sum(loads) == 10


def test_a_job_that_computes_nothing_pays_for_no_loading() -> None:
    """It is left to those that the model serves."""
    pipeline = Pipeline()
    pipeline.load(10)
    assert pipeline.clock.take() == {}
    pipeline.generate(20)
    assert pipeline.clock.take() == {"other": 2, "denoise": 20, "load": 10}


def test_what_a_job_waits_for_counts_for_no_stage() -> None:
    """What is moved meanwhile does: it is the loading that jobs share."""
    pipeline = Pipeline()
    with pipeline.clock.stage("other"):
        pipeline.now += 1
        with pipeline.clock.paused():
            pipeline.now += 60
            pipeline.load(2)
        pipeline.denoise(5)
    assert pipeline.clock.take() == {"other": 1, "denoise": 5, "load": 2}
    assert pipeline.clock.paused_s == 62
