"""Prometheus metrics, rendered at scrape time from a ledger snapshot; processes keep no counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

MS_PER_S = 1000.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The values of one scrape.

    `counts` are the ledger's counters by dotted name, `depths` the queued jobs by queue, `workers` the
    family and state of each worker seen in the last day.
    """

    counts: Mapping[str, int]
    depths: Mapping[str, int]
    paused: frozenset[str]
    workers: tuple[tuple[str, str], ...]
    outbox_pending: int


def render(snapshot: Snapshot) -> bytes:
    """Render the snapshot in the Prometheus text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(snapshot))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        yield from _queues(self._snapshot)
        yield from _jobs(self._snapshot.counts)
        yield from _assets(self._snapshot.counts)
        yield from _callbacks(self._snapshot)
        yield from _workers(self._snapshot.workers)


def _queues(snapshot: Snapshot) -> Iterable[Metric]:
    depth = GaugeMetricFamily("ourvidz_queue_depth", "Jobs that wait in a queue.", labels=["queue"])
    paused = GaugeMetricFamily("ourvidz_queue_paused", "1 while a queue is paused.", labels=["queue"])
    for queue, waiting in snapshot.depths.items():
        depth.add_metric([queue], waiting)
        paused.add_metric([queue], float(queue in snapshot.paused))
    yield depth
    yield paused


def _jobs(counts: Mapping[str, int]) -> Iterable[Metric]:
    ended = CounterMetricFamily(
        "ourvidz_jobs", "Runs that ended, by type and ending.", labels=["type", "ending"]
    )
    seconds = SummaryMetricFamily(
        "ourvidz_generation_seconds",
        "Generation time of completed jobs, model load excluded.",
        labels=["type"],
    )
    released = CounterMetricFamily(
        "ourvidz_attempts_released", "Attempts that went back to the queue, by error code.", labels=["code"]
    )
    for name, count in sorted(counts.items()):
        match name.split("."):
            case ["jobs", type_, ending]:
                ended.add_metric([type_, ending], count)
            case ["generation_ms", type_, "sum"]:
                completed = counts.get(f"jobs.{type_}.completed", 0)
                seconds.add_metric([type_], count_value=completed, sum_value=count / MS_PER_S)
            case ["attempts", "released", code]:
                released.add_metric([code], count)
    yield ended
    yield seconds
    yield released


def _assets(counts: Mapping[str, int]) -> Iterable[Metric]:
    unsigned = CounterMetricFamily(
        "ourvidz_assets_unsigned", "Assets stored without the C2PA manifest that they should have."
    )
    unsigned.add_metric([], counts.get("assets.unsigned", 0))
    yield unsigned


def _callbacks(snapshot: Snapshot) -> Iterable[Metric]:
    callbacks = CounterMetricFamily(
        "ourvidz_callbacks", "Callbacks delivered, put off for another try, and given up.", labels=["state"]
    )
    for state in ("delivered", "retried", "dead"):
        callbacks.add_metric([state], snapshot.counts.get(f"callbacks.{state}", 0))
    yield callbacks
    pending = GaugeMetricFamily("ourvidz_outbox_pending", "Callbacks that are still to be delivered.")
    pending.add_metric([], snapshot.outbox_pending)
    yield pending


def _workers(workers: tuple[tuple[str, str], ...]) -> Iterable[Metric]:
    up = GaugeMetricFamily("ourvidz_workers_up", "Workers that are here.", labels=["family"])
    busy = GaugeMetricFamily("ourvidz_workers_busy", "Workers that run a job.", labels=["family"])
    for family in sorted({family for family, _ in workers}):
        states = [state for its, state in workers if its == family]
        up.add_metric([family], sum(state != "offline" for state in states))
        busy.add_metric([family], states.count("busy"))
    yield up
    yield busy
