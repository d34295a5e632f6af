"""Why an installation is degraded: rules over the ledger's vitals and workers, without names of hosts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ourvidz.jobs.catalog import QUEUES
from ourvidz.records.record import Worker
from ourvidz.records.vitals import Vitals

SWEEP_STALE_S = 60.0
"""A sweep runs every two seconds; a keeper that died is replaced within seconds."""
OUTBOX_LAG_S = 120.0
"""Longer than a delivery that times out, and than all of a slow receiver's before it."""

ReasonCode = Literal[
    "ledger_unreachable", "no_worker", "workers_failed", "sweep_stale", "sweep_failing", "queue_stuck",
    "leases_stuck", "outbox_lag", "quarantined_jobs", "capacity_exceeded", "gpu_memory_stuck",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason: a code for programs, a sentence for people."""

    code: ReasonCode
    message: str


def is_failed(worker: Worker) -> bool:
    """Whether a worker cannot load its models. One of an earlier release reports its error alone."""
    return worker.state == "failed" or worker.load_error is not None


def degradations(
    vitals: Vitals,
    workers: Sequence[Worker],
    paused: frozenset[str],
    *,
    uptime_s: float,
    stuck_after_s: Mapping[str, float],
    refusal: str | None = None,
    stuck_parts: Sequence[str] = (),
) -> list[Reason]:
    """Return what is wrong, most important first.

    `workers`: those that are online. `uptime_s`: for how long this process could have seen a sweep.
    `stuck_after_s`: by queue, how long a due job may wait while no job of the queue is started. `refusal`:
    why new jobs are refused for lack of capacity. `stuck_parts`: parts of models that are being moved to or
    from a GPU and do not arrive.
    """
    return [
        *_workers(workers),
        *_sweep(vitals, uptime_s),
        *_queues(vitals, paused, stuck_after_s),
        *_leases(vitals),
        *_outbox(vitals),
        *_quarantine(vitals),
        *([Reason("capacity_exceeded", refusal)] if refusal else []),
        *_gpu_memory(stuck_parts),
    ]


def _workers(workers: Sequence[Worker]) -> Iterator[Reason]:
    gpu_workers = [worker for worker in workers if worker.family in QUEUES]
    if not any(not worker.draining and not is_failed(worker) for worker in gpu_workers):
        yield Reason("no_worker", "No worker takes jobs.")
    failed = [worker.queue for worker in gpu_workers if is_failed(worker)]
    if failed:
        queues = ", ".join(sorted(set(failed)))
        yield Reason("workers_failed", f"{len(failed)} of the workers of {queues} cannot load their models.")


def _sweep(vitals: Vitals, uptime_s: float) -> Iterator[Reason]:
    age_s = uptime_s if vitals.sweep_age_s is None else min(vitals.sweep_age_s, uptime_s)
    if age_s > SWEEP_STALE_S:
        since = "ever" if vitals.sweep_age_s is None else f"for {_duration(vitals.sweep_age_s)}"
        yield Reason("sweep_stale", f"No keeper has swept {since}: nothing that is lost is recovered.")
    if vitals.failed_phases:
        phases = ", ".join(vitals.failed_phases)
        yield Reason("sweep_failing", f"The last sweep failed in {phases}; the keeper's log says why.")


def _queues(vitals: Vitals, paused: frozenset[str], stuck_after_s: Mapping[str, float]) -> Iterator[Reason]:
    for name, queue in vitals.queues.items():
        if name in paused or queue.oldest_s is None:
            continue
        idle_s = queue.oldest_s if queue.last_claim_s is None else min(queue.oldest_s, queue.last_claim_s)
        if idle_s > stuck_after_s[name]:
            yield Reason(
                "queue_stuck",
                f"Jobs have waited in {name} for {_duration(queue.oldest_s)}, and none was started"
                f" for {_duration(idle_s)}.",
            )


def _leases(vitals: Vitals) -> Iterator[Reason]:
    if vitals.stuck_leases:
        yield Reason(
            "leases_stuck",
            f"{vitals.stuck_leases} jobs of lost workers have waited for a minute to be recovered.",
        )


def _outbox(vitals: Vitals) -> Iterator[Reason]:
    if vitals.outbox_lag_s > OUTBOX_LAG_S:
        yield Reason(
            "outbox_lag", f"Callbacks have been due for {_duration(vitals.outbox_lag_s)} and were not sent."
        )


def _quarantine(vitals: Vitals) -> Iterator[Reason]:
    if vitals.quarantined:
        yield Reason(
            "quarantined_jobs",
            f"{vitals.quarantined} jobs cannot be read by this release and wait;"
            " `ourvidz ledger check` lists them.",
        )


def _gpu_memory(stuck_parts: Sequence[str]) -> Iterator[Reason]:
    if stuck_parts:
        yield Reason(
            "gpu_memory_stuck",
            f"{', '.join(stuck_parts)} cannot be moved to or from a GPU;"
            " `ourvidz memory status` names the process.",
        )


def _duration(seconds: float) -> str:
    """A duration in its largest whole unit: "90 seconds", "3 hours"."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} seconds"
