"""The stopwatch that measures the stages of a benchmark."""

from __future__ import annotations

from types import SimpleNamespace

from benchmarks.stages import Duration, Stopwatch, median


def test_calls_of_a_stage_are_added_up_in_each_round() -> None:
    """The median is taken over rounds, not over calls."""
    stopwatch = Stopwatch()
    for calls in (1, 2, 9):
        with stopwatch.round():
            for _ in range(calls):
                stopwatch.add("store", Duration(1.0, 0.5))
    assert stopwatch.medians() == {"store": Duration(2.0, 1.0)}


def test_a_call_inside_a_call_of_the_same_stage_is_not_counted_again() -> None:
    """`png` may be called by a function that is timed as the same stage."""
    module = SimpleNamespace(inner=lambda: None, outer=lambda: module.inner())
    durations: list[tuple[str, Duration]] = []
    stopwatch = Stopwatch()
    stopwatch.add = lambda stage, duration: durations.append((stage, duration))  # type: ignore[method-assign]
    with stopwatch.timing((module, "inner", "encode"), (module, "outer", "encode")):
        module.outer()
    assert [stage for stage, _ in durations] == ["encode"]


def test_the_timed_functions_are_restored() -> None:
    """Also those that are inherited, which have no entry of their own to restore."""

    class Base:
        def run(self) -> int:
            return 1

    class Derived(Base):
        pass

    original = Base.run
    stopwatch = Stopwatch()
    with stopwatch.round(), stopwatch.timing((Derived, "run", "run"), (Base, "run", "run")):
        assert Derived().run() == 1
        assert Base.run is not original
    assert Base.run is original
    assert "run" not in vars(Derived)


def test_the_median_is_taken_of_both_times() -> None:
    """Wall-clock and processor time need not come from the same round."""
    measured = [Duration(1, 30), Duration(2, 20), Duration(3, 10)]
    assert median(measured) == Duration(2, 20)
