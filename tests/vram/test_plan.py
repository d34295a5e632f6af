"""Plans for the memory of a GPU: fallbacks, and models that stay loaded together."""

from __future__ import annotations

import pytest

from ourvidz.vram.footprints import kind_of
from ourvidz.vram.plan import Demand, Fallback, JobEstimate, fallback, fitting_together, with_learned

JOB = JobEstimate("an image", "sdxl:20", whole_mib=400, tiled_mib=200, least_mib=100)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1400, "none"), (1399, "tiled VAE"), (1199, "smaller batches"), (1099, "does not fit")],
)
def test_a_job_runs_with_the_first_fallback_that_fits(budget: int, expected: Fallback) -> None:
    """In the order in which a worker tries them."""
    assert fallback(Demand("sdxl", 1000, (JOB,)), JOB, budget) == expected


def test_models_stay_together_if_any_of_them_can_work() -> None:
    """Only one of them works at a time; one set is named once, not with each of its parts."""
    a, b, c = (Demand(name, mib, (JOB,)) for name, mib in (("a", 100), ("b", 200), ("c", 2000)))
    assert fitting_together([a, b, c], 700) == [("a", "b")]
    assert fitting_together([a, b, c], 2700) == [("a", "b", "c")]
    assert fitting_together([c], 2150) == [("c",)], "with its fallback"
    assert fitting_together([c], 100) == []


def test_what_was_measured_replaces_a_guess() -> None:
    """A job that was measured with less than its tiled estimate needs no tiles."""
    (job,) = with_learned([JOB], {"sdxl:20": 150})
    assert (job.whole_mib, job.tiled_mib, job.least_mib, job.learned) == (150, 150, 100, True)
    assert with_learned([JOB], {"wan:20": 1}) == (JOB,)


def test_the_kinds_of_the_plan_are_those_that_workers_learn() -> None:
    """Else no measurement would ever reach the plan."""
    from ourvidz.vram.plan import JOBS

    assert JOBS["sdxl"][0].kind == kind_of("sdxl", pixels=1024 * 1024, count=1) == "sdxl:20"
    assert JOBS["wan"][0].kind == kind_of("wan", pixels=832 * 480, count=81)
    assert {job.kind for job in JOBS["qwen_base"]} == {kind_of("chat", pixels=4096, count=1)}
