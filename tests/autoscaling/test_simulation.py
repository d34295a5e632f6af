"""A fleet on a virtual clock follows the policy through a day."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ourvidz.autoscaling.arrivals import Arrival, day_of_arrivals
from ourvidz.autoscaling.policy import Policy
from ourvidz.autoscaling.simulation import FleetOptions, FleetReport, simulate
from ourvidz.jobs.catalog import QUEUES

HOUR_S = 3600.0


@pytest.fixture(scope="module")
def day() -> FleetReport:
    """A day of SDXL jobs with the default policy."""
    return simulate(day_of_arrivals("sdxl_queue"), Policy(target_wait_s=60.0))


def test_the_fleet_follows_the_day(day: FleetReport) -> None:
    """Nobody at night, one worker for the first job, eight at noon, nobody after the last."""
    workers = [change.workers for change in day.changes]
    assert workers[:2] == [0, 1]
    assert (day.most_workers, day.last_workers) == (8, 0)
    assert day.changes[1].at_s > 5 * HOUR_S
    by_hour = day.workers_by_hour()
    assert by_hour[2] == 0
    assert by_hour[14] == 8


def test_no_job_is_interrupted_or_lost(day: FleetReport) -> None:
    """Workers are stopped between jobs only."""
    assert day.stopped_busy == 0
    assert day.stopped == day.started > 8
    assert len(day.waits_s) == len(day_of_arrivals("sdxl_queue"))


def test_jobs_wait_about_as_long_as_they_should(day: FleetReport) -> None:
    """The first job after a night waits for a start; nineteen of twenty wait less than the target."""
    assert day.wait_s(0.95) < 60.0
    assert day.wait_s(1.0) < 180.0


def test_a_fleet_that_scales_costs_less_than_one_that_does_not(day: FleetReport) -> None:
    """Half of the hours are not paid for."""
    assert day.worker_s < 0.6 * day.most_workers * day.ended_s


@pytest.mark.parametrize("queue", QUEUES.values())
def test_the_pattern_is_the_same_each_time(queue: str) -> None:
    """Two policies can be compared on it."""
    assert day_of_arrivals(queue) == day_of_arrivals(queue)
    assert day_of_arrivals(queue) != day_of_arrivals(queue, seed=1)


def test_a_short_pause_stops_no_worker() -> None:
    """The number must be lower for a while: a worker that starts again loads its models again."""
    jobs = [Arrival(at_s, 30.0, 30.0) for at_s in (0.0, 200.0, 400.0)]
    report = simulate(jobs, Policy(target_wait_s=60.0, idle_s=0.0), FleetOptions(steady_s=300.0))
    assert report.started == 1


def test_jobs_of_one_batch_do_not_wait_for_each_other() -> None:
    """Three texts on one worker that runs two at a time: the third waits for the first of them."""
    jobs = [Arrival(0.0, 10.0, run_s) for run_s in (10.0, 20.0, 10.0)]
    policy = Policy(target_wait_s=600.0, maximum=1, jobs_at_a_time=2)
    report = simulate(jobs, policy, FleetOptions(start_s=0.0))
    assert [wait - report.waits_s[0] for wait in report.waits_s] == [0.0, 0.0, 10.0]


def test_a_minimum_is_kept() -> None:
    """From the start to the end, without any job."""
    report = simulate([], Policy(target_wait_s=60.0, minimum=2))
    assert [change.workers for change in report.changes] == [2]


def test_a_policy_that_never_scales_to_zero_ends_too() -> None:
    """A simulation has an end whatever the idle time is."""
    report = simulate([Arrival(0.0, 30.0, 30.0)], Policy(target_wait_s=60.0, idle_s=1e12))
    assert report.last_workers == 1


arrivals = st.lists(
    st.builds(Arrival, st.floats(0, 7200), st.floats(1, 300), st.floats(0, 600)), max_size=40
).map(lambda jobs: sorted(jobs, key=lambda job: job.at_s))


@settings(max_examples=25, deadline=None)
@given(
    arrivals, st.floats(1, 600), st.integers(1, 6), st.floats(0, 600), st.floats(0, 600), st.integers(1, 3)
)
def test_whatever_arrives_is_run_and_no_busy_worker_stops(
    jobs: list[Arrival], target_s: float, maximum: int, idle_s: float, steady_s: float, together: int
) -> None:
    """Also when the estimates are wrong, and numbers are followed at once."""
    policy = Policy(target_wait_s=target_s, maximum=maximum, idle_s=idle_s, jobs_at_a_time=together)
    report = simulate(jobs, policy, FleetOptions(steady_s=steady_s))
    assert len(report.waits_s) == len(jobs)
    assert min(report.waits_s, default=0.0) >= 0.0
    assert report.stopped_busy == 0
    assert report.most_workers <= maximum
    assert report.last_workers == 0
