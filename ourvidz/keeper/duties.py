"""The duties of a keeper. A further one is one row in `duties`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from ourvidz import dispatch, log
from ourvidz.keeper.lease import DutyLease
from ourvidz.ledger.sweep import sweep
from ourvidz.wiring import control

BEAT_MESSAGES_INTERVAL_S = 600.0

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Duty:
    """Work that one keeper at a time repeats.

    `name` names its lease and its log lines. `interval_s`: seconds from one start to the next. `run` does it
    once; work that takes longer than a few seconds calls `renew` of the lease between its steps.
    """

    name: str
    interval_s: float
    run: Callable[[DutyLease], None]


def duties() -> list[Duty]:
    """Return the duties of this installation."""
    settings = control.current().settings
    return [
        Duty("sweep", settings.sweep_s, sweep_ledger),
        Duty("beat_messages", BEAT_MESSAGES_INTERVAL_S, drop_beat_messages),
    ]


def sweep_ledger(lease: DutyLease) -> None:
    """Run one sweep: recover lost attempts and messages, start due deliveries, purge old records."""
    app = control.current()
    report = sweep(
        app.ledger,
        dispatch.Broker(),
        app.sweep_options,
        contact_s=lease.contact_s,
        checkpoint=lease.renew,
    )
    counts = {name: count for name, count in asdict(report).items() if count}
    if counts:
        _log.info("swept", **counts)


def drop_beat_messages(lease: DutyLease) -> None:  # noqa: ARG001
    """Delete the messages by which releases with a beat process triggered their sweeps. Nobody consumes them
    any more, and such a process, if it still runs, adds 43,000 a day."""
    dropped = dispatch.drop_beat_messages()
    if dropped:
        _log.warning("beat_messages_dropped", count=dropped, hint="stop `ourvidz worker clock`: it is gone")
