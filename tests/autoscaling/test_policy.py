"""How many workers a queue should have: claims about all demands and policies."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ourvidz.autoscaling.policy import Demand, Policy, wanted_workers

POLICY = Policy(target_wait_s=60.0, minimum=0, maximum=8, idle_s=300.0)
seconds = st.floats(0, 1e6)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    """A demand whose numbers fit together: without jobs there is no work."""
    queued, running = draw(st.integers(0, 500)), draw(st.integers(0, 50))
    return Demand(
        queued=queued,
        queued_s=draw(seconds) if queued else 0.0,
        running=running,
        running_s=draw(seconds) if running else 0.0,
        busy=draw(st.integers(0, running)) if running else 0,
        idle_s=draw(st.none() | seconds),
        paused=draw(st.booleans()),
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """A policy whose bounds fit together."""
    minimum = draw(st.integers(0, 10))
    return Policy(
        target_wait_s=draw(st.floats(0.1, 1e5)),
        minimum=minimum,
        maximum=draw(st.integers(max(1, minimum), 30)),
        idle_s=draw(seconds),
        jobs_at_a_time=draw(st.integers(1, 16)),
    )


@pytest.mark.parametrize(
    ("demand", "wanted"),
    [
        (Demand(), 0),
        (Demand(queued=1, queued_s=42), 1),
        (Demand(queued=3, queued_s=120), 2),
        (Demand(queued=3, queued_s=120.5), 3),
        (Demand(queued=5, queued_s=200, running=1, running_s=40, busy=1), 4),
        (Demand(queued=100, queued_s=4200), 8),
        (Demand(queued=1, queued_s=240), 1),
        (Demand(running=9, running_s=9, busy=9), 9),
        (Demand(queued=100, queued_s=4200, paused=True), 0),
        (Demand(queued=100, queued_s=4200, running=2, running_s=30, busy=2, paused=True), 2),
        (Demand(idle_s=299), 1),
        (Demand(idle_s=300), 0),
    ],
    ids=[
        *("nothing", "one job", "two minutes", "a little more", "with running ones", "the maximum"),
        *("a job runs on one worker", "busy ones above the maximum", "paused", "paused with running ones"),
        *("kept for a while", "not for ever"),
    ],
)
def test_remaining_seconds_divided_by_the_target_wait(demand: Demand, wanted: int) -> None:
    """The rule, and what bounds it."""
    assert wanted_workers(demand, POLICY) == wanted


def test_texts_that_are_decoded_together_take_fewer_workers() -> None:
    """A worker for texts runs eight at a time."""
    policy = replace(POLICY, target_wait_s=15.0, jobs_at_a_time=8)
    assert wanted_workers(Demand(queued=16, queued_s=16 * 15.0), policy) == 2
    assert wanted_workers(Demand(queued=7, queued_s=7 * 200.0), policy) == 1


def test_the_sum_of_many_seconds_is_not_rounded_up() -> None:
    """Six hundred tenths of a second are one minute, also in floating point."""
    demand = Demand(queued=600, queued_s=sum([0.1] * 600))
    assert demand.queued_s != 60.0
    assert wanted_workers(demand, POLICY) == 1


@given(demands(), policies())
def test_no_busy_worker_is_unwanted(demand: Demand, policy: Policy) -> None:
    """Removing idle workers down to the wanted number interrupts no job."""
    assert wanted_workers(demand, policy) >= demand.busy


@given(demands(), policies())
def test_the_bounds_hold(demand: Demand, policy: Policy) -> None:
    """Only busy workers are above the maximum: it bounds what is spent."""
    wanted = wanted_workers(demand, policy)
    assert policy.minimum <= wanted <= max(policy.maximum, demand.busy)


@given(demands(), policies())
def test_within_the_bounds_the_work_is_done_in_time(demand: Demand, policy: Policy) -> None:
    """Unless there are fewer jobs than workers that it would take."""
    wanted = wanted_workers(demand, policy)
    if wanted < policy.maximum and wanted * policy.jobs_at_a_time < demand.jobs:
        assert demand.remaining_s / wanted <= policy.target_wait_s * policy.jobs_at_a_time * (1 + 1e-5)


@given(demands(), policies(), st.integers(1, 100), st.floats(0.1, 1e4))
def test_more_work_never_wants_fewer_workers(demand: Demand, policy: Policy, jobs: int, job_s: float) -> None:
    """Otherwise a fleet would swing while a queue fills."""
    more = replace(demand, queued=demand.queued + jobs, queued_s=demand.queued_s + job_s)
    assert wanted_workers(more, policy) >= wanted_workers(demand, policy)


@given(demands(), policies())
def test_no_worker_is_wanted_only_when_there_is_nothing_to_do(demand: Demand, policy: Policy) -> None:
    """A job in the queue always gets a worker, also after a scale to zero."""
    idle = demand.idle_s is None or demand.idle_s >= policy.idle_s
    nothing = not demand.jobs and idle and not policy.minimum and not demand.busy
    assert (wanted_workers(demand, policy) == 0) == nothing


@given(demands(), policies())
def test_a_job_runs_on_one_worker(demand: Demand, policy: Policy) -> None:
    """More workers than jobs would stand idle, however long the jobs take."""
    wanted = wanted_workers(demand, policy)
    assert wanted <= max(math.ceil(demand.jobs / policy.jobs_at_a_time), demand.busy, policy.minimum, 1)
    assert wanted == math.floor(wanted)
