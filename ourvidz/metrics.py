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
BYTES_PER_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of one GPU (MiB): `parts` are the id, state and size of what resides there, `waits_s` how
    long each worker has waited for memory (seconds)."""

    device: str
    total_mib: int
    free_mib: int
    budget_mib: int
    parts: tuple[tuple[str, str, int], ...] = ()
    waits_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The values of one scrape.

    `counts` are the ledger's counters by dotted name, `depths` the queued jobs by queue, `oldest_s` the
    longest wait by queue (seconds), `workers` the family and state of each worker seen in the last day,
    `failed_workers` the families of those that cannot load their models. `sweep_age_s` is None before the
    first sweep, `failed_phases` the number of phases that failed in the last one. `headroom`: capacity for
    new jobs by resource, from 1 to 0.
    """

    counts: Mapping[str, int]
    depths: Mapping[str, int]
    paused: frozenset[str]
    workers: tuple[tuple[str, str], ...]
    failed_workers: tuple[str, ...]
    outbox_pending: int
    outbox_lag_s: float
    sweep_age_s: float | None
    failed_phases: int
    stuck_leases: int
    quarantined: int
    oldest_s: Mapping[str, float]
    headroom: Mapping[str, float]
    devices: tuple[DeviceMemory, ...] = ()
    metrics_counts: tuple[tuple[str, Mapping[str, int]], ...] = ()
    """For each worker that sends documents about ended jobs, how many it has `sent` and `dropped`."""


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
        yield from _headroom(self._snapshot.headroom)
        yield from _assets(self._snapshot.counts)
        yield _reports(self._snapshot.metrics_counts)
        yield _embedding_cache(self._snapshot.counts)
        yield from _callbacks(self._snapshot)
        yield from _workers(self._snapshot)
        yield from _recovery(self._snapshot)
        yield from _devices(self._snapshot.devices)


def _queues(snapshot: Snapshot) -> Iterable[Metric]:
    """Depth and longest wait of each queue, and whether it is paused."""
    depth = GaugeMetricFamily("ourvidz_queue_depth", "Jobs that wait in a queue.", labels=["queue"])
    paused = GaugeMetricFamily("ourvidz_queue_paused", "1 while a queue is paused.", labels=["queue"])
    oldest = GaugeMetricFamily(
        "ourvidz_queue_oldest_seconds",
        "For how long the oldest due job has waited; 0 when none waits.",
        labels=["queue"],
    )
    for queue, waiting in snapshot.depths.items():
        depth.add_metric([queue], waiting)
        paused.add_metric([queue], float(queue in snapshot.paused))
        oldest.add_metric([queue], snapshot.oldest_s.get(queue, 0.0))
    yield depth
    yield paused
    yield oldest


def _devices(devices: tuple[DeviceMemory, ...]) -> Iterable[Metric]:
    """Memory of each GPU, what resides there, and who waits for it."""
    memory = GaugeMetricFamily(
        "ourvidz_gpu_memory_bytes",
        "Memory of a GPU: in all, free, and what the workers may use together.",
        labels=["device", "kind"],
    )
    parts = GaugeMetricFamily(
        "ourvidz_gpu_part_bytes", "Memory of a part of a model.", labels=["device", "part", "state"]
    )
    waiting = GaugeMetricFamily(
        "ourvidz_gpu_waiting", "Workers that wait for memory of a GPU.", labels=["device"]
    )
    oldest = GaugeMetricFamily(
        "ourvidz_gpu_oldest_wait_seconds", "How long the first of them has waited.", labels=["device"]
    )
    for device in devices:
        figures = {"total": device.total_mib, "free": device.free_mib, "budget": device.budget_mib}
        for kind, mib in figures.items():
            memory.add_metric([device.device, kind], mib * BYTES_PER_MIB)
        for part, state, mib in device.parts:
            parts.add_metric([device.device, part, state], mib * BYTES_PER_MIB)
        waiting.add_metric([device.device], len(device.waits_s))
        oldest.add_metric([device.device], max(device.waits_s, default=0.0))
    yield memory
    yield parts
    yield waiting
    yield oldest


def _jobs(counts: Mapping[str, int]) -> Iterable[Metric]:
    """Ended runs, generation times and released attempts, from the ledger's counters."""
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
    imports = CounterMetricFamily(
        "ourvidz_imports", "Entries of callers' raw lists, by what became of them.", labels=["result"]
    )
    for name, count in sorted(counts.items()):
        match name.split("."):
            case ["imports", result]:
                imports.add_metric([result], count)
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
    yield imports


def _assets(counts: Mapping[str, int]) -> Iterable[Metric]:
    """Assets of completed jobs and their bytes, jobs with references, and assets stored without the C2PA
    manifest that they should have."""
    generated = CounterMetricFamily(
        "ourvidz_assets_generated", "Assets of completed jobs, texts among them.", labels=["type"]
    )
    stored = CounterMetricFamily(
        "ourvidz_asset_bytes",
        "Bytes of the files of completed jobs, without thumbnails.",
        labels=["type"],
    )
    references = CounterMetricFamily(
        "ourvidz_reference_jobs", "Completed jobs with references.", labels=["type", "reference_mode"]
    )
    for name, count in sorted(counts.items()):
        match name.split("."):
            case ["assets_generated", type_, "count"]:
                generated.add_metric([type_], count)
            case ["assets_generated", type_, "bytes"]:
                stored.add_metric([type_], count)
            case ["reference_jobs", type_, mode]:
                references.add_metric([type_, mode], count)
    yield generated
    yield stored
    yield references
    unsigned = CounterMetricFamily(
        "ourvidz_assets_unsigned", "Assets stored without the C2PA manifest that they should have."
    )
    unsigned.add_metric([], counts.get("assets.unsigned", 0))
    yield unsigned


def _reports(counts: Iterable[tuple[str, Mapping[str, int]]]) -> Metric:
    """Documents about ended jobs that each worker has sent to the receiver of metrics, or dropped."""
    reports = CounterMetricFamily(
        "ourvidz_metrics_reports",
        "Documents about ended jobs, since the start of the worker.",
        labels=["worker", "result"],
    )
    for worker, by_result in counts:
        for result in ("sent", "dropped"):
            reports.add_metric([worker, result], by_result.get(result, 0))
    return reports


def _embedding_cache(counts: Mapping[str, int]) -> Metric:
    """Prompts and references that did not have to be encoded again, and those that had to."""
    inputs = CounterMetricFamily(
        "ourvidz_embedding_cache",
        "Prompts and references of completed jobs, by whether the workers' caches had them.",
        labels=["result"],
    )
    for result, name in (("hit", "hits"), ("miss", "misses")):
        inputs.add_metric([result], counts.get(f"embedding_cache.{name}", 0))
    return inputs


def _callbacks(snapshot: Snapshot) -> Iterable[Metric]:
    """Delivered, retried, dead and pending callbacks, and the delay of the most overdue one."""
    callbacks = CounterMetricFamily(
        "ourvidz_callbacks", "Callbacks delivered, put off for another try, and given up.", labels=["state"]
    )
    for state in ("delivered", "retried", "dead"):
        callbacks.add_metric([state], snapshot.counts.get(f"callbacks.{state}", 0))
    yield callbacks
    pending = GaugeMetricFamily("ourvidz_outbox_pending", "Callbacks that are still to be delivered.")
    pending.add_metric([], snapshot.outbox_pending)
    yield pending
    yield _gauge(
        "ourvidz_outbox_lag_seconds",
        "For how long the most overdue callback has been due; 0 when none is.",
        snapshot.outbox_lag_s,
    )


def _workers(snapshot: Snapshot) -> Iterable[Metric]:
    """Online, busy and failed workers by family."""
    up = GaugeMetricFamily("ourvidz_workers_up", "Workers that are here.", labels=["family"])
    busy = GaugeMetricFamily("ourvidz_workers_busy", "Workers that run a job.", labels=["family"])
    failed = GaugeMetricFamily(
        "ourvidz_workers_failed", "Workers that cannot load their models.", labels=["family"]
    )
    for family in sorted({family for family, _ in snapshot.workers}):
        states = [state for its, state in snapshot.workers if its == family]
        failed.add_metric([family], snapshot.failed_workers.count(family))
        up.add_metric([family], sum(state != "offline" for state in states))
        busy.add_metric([family], states.count("busy"))
    yield up
    yield busy
    yield failed


def _headroom(headroom: Mapping[str, float]) -> Iterable[Metric]:
    gauge = GaugeMetricFamily(
        "ourvidz_headroom_ratio", "Capacity for new jobs; at 0 they are refused.", labels=["resource"]
    )
    for resource, share in headroom.items():
        gauge.add_metric([resource], share)
    yield gauge


def _recovery(snapshot: Snapshot) -> Iterable[Metric]:
    """Age and failed phases of the sweep, stuck leases and quarantined jobs."""
    if snapshot.sweep_age_s is not None:
        yield _gauge("ourvidz_sweep_age_seconds", "Time since the last sweep.", snapshot.sweep_age_s)
    yield _gauge(
        "ourvidz_sweep_failed_phases", "Phases of the last sweep that failed.", snapshot.failed_phases
    )
    yield _gauge("ourvidz_leases_stuck", "Leases that ended over a minute ago.", snapshot.stuck_leases)
    yield _gauge("ourvidz_jobs_quarantined", "Jobs that this release cannot read.", snapshot.quarantined)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    """A gauge without labels."""
    gauge = GaugeMetricFamily(name, meaning)
    gauge.add_metric([], value)
    return gauge
