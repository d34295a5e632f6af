"""The duties of a keeper. A further one is one row in `duties`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from ourvidz import dispatch, log, memory, uploads
from ourvidz.erasure import users as erasures
from ourvidz.errors import StorageError
from ourvidz.keeper.lease import DutyLease
from ourvidz.records.record import Record
from ourvidz.recovery.remains import remove_remains
from ourvidz.recovery.sweep import sweep
from ourvidz.storage.keys import CHECKPOINTS, checkpoints_folder
from ourvidz.wiring import control

DELETIONS_INTERVAL_S = 30.0
ATTEMPT_FOLDERS_S = 30.0
"""How often the files of attempts that died are looked for."""
CHECKPOINTS_S = 30.0
"""How often the checkpoints of jobs that have ended are looked for."""
UPLOADS_S = 300.0
"""How often uploaded references are looked for whose time is over."""
PREFETCH_S = 5.0
"""How often models are looked for that queued jobs will need."""
REGISTRATIONS_S = 3.0
"""How often the workers are compared with what the caller's backend was told of them."""
ERASURES_S = 5.0
"""How often erasures of users are looked for that have not ended."""
HOUSEKEEPING_INTERVAL_S = 300.0

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Duty:
    """Work that one keeper at a time repeats.

    `name` names its lease and its log lines. `interval_s`: seconds from one start to the next. `run` does it
    once; work that takes longer than a few seconds calls `renew` of the lease between its steps: otherwise
    another keeper takes it over, and after a minute `ourvidz up` restarts a keeper that seems to hang.
    """

    name: str
    interval_s: float
    run: Callable[[DutyLease], None]


def duties() -> list[Duty]:
    """Return the duties of this installation."""
    settings = control.current().settings
    return [
        Duty("sweep", settings.sweep_s, sweep_ledger),
        Duty("unprefixed_messages", settings.sweep_s, adopt_unprefixed_messages),
        Duty("delivery_messages", settings.sweep_s, serve_former_io),
        *([Duty("imports", settings.sweep_s, import_lists)] if settings.import_lists else []),
        Duty("attempt_folders", ATTEMPT_FOLDERS_S, remove_attempt_folders),
        Duty("checkpoints", CHECKPOINTS_S, remove_checkpoints),
        Duty("uploads", UPLOADS_S, remove_uploads),
        Duty("prefetch", PREFETCH_S, prefetch_models),
        Duty("deletions", DELETIONS_INTERVAL_S, resume_deletions),
        Duty("erasures", ERASURES_S, resume_erasures),
        Duty("registrations", REGISTRATIONS_S, update_registrations),
        Duty("housekeeping", HOUSEKEEPING_INTERVAL_S, keep_house),
    ]


def sweep_ledger(lease: DutyLease) -> None:
    """Run one sweep: recover lost attempts and messages, set aside what cannot be read, purge old records."""
    app = control.current()
    report = sweep(
        app.ledger,
        dispatch.Broker(),
        app.sweep_options,
        checkpoint=lease.renew,
    )
    counts = {name: count for name, count in asdict(report).items() if count}
    if counts:
        _log.info("swept", **counts)


def remove_attempt_folders(lease: DutyLease) -> None:
    """Remove the files that attempts which died have stored and not published."""
    app = control.current()
    for job_id, token, folder in app.ledger.dead_attempt_folders():
        lease.renew()
        try:
            app.store.delete_folder(folder)
        except StorageError as error:
            _log.warning("attempt_folder_left", job_id=job_id, reason=error.message)
            continue
        app.ledger.untrack_attempt_folder(job_id, token, folder)
        _log.info("attempt_folder_removed", job_id=job_id)


def remove_checkpoints(lease: DutyLease) -> None:
    """Remove the checkpoints of jobs that have ended or are gone: the worker that committed the end removes
    them too, but none does for a job that was cancelled in the queue or lost."""
    app = control.current()
    job_ids = app.store.folders(CHECKPOINTS)
    for job_id, record in zip(job_ids, app.ledger.read_each(job_ids), strict=True):
        lease.renew()
        # A record that this release cannot read may be one of a newer release, and its job may be running.
        if record is None or (isinstance(record, Record) and record.finished):
            try:
                app.store.delete_folder(checkpoints_folder(job_id))
            except StorageError as error:
                _log.warning("checkpoints_left", job_id=job_id, reason=error.message)
            else:
                _log.info("checkpoints_removed", job_id=job_id)


def remove_uploads(lease: DutyLease) -> None:
    """Remove uploaded references whose time is over."""
    app = control.current()
    deleted = uploads.delete_expired(app.store, now=app.ledger.now(), renew=lease.renew)
    if deleted:
        _log.info("uploads_removed", count=deleted)


def prefetch_models(_lease: DutyLease) -> None:
    """Have models loaded that queued jobs will need, where the memory of a GPU is free."""
    asked = memory.prefetch()
    if asked:
        _log.info("models_prefetched", models=asked)


def resume_deletions(lease: DutyLease) -> None:
    """Go on with deletions of jobs whose process died between the files and the record."""
    deleted = dispatch.resume_deletions(lease.renew)
    if deleted:
        _log.info("deletions_resumed", count=deleted)


def resume_erasures(lease: DutyLease) -> None:
    """Go on with erasures of users whose jobs still ran, or whose process died."""
    ended = erasures.resume_erasures(lease.renew)
    if ended:
        _log.info("erasures_ended", count=ended)


def update_registrations(_lease: DutyLease) -> None:
    """Tell the caller's backend which workers have died, and register the others again in intervals."""
    app = control.current()
    events = app.ledger.update_registrations(refresh_s=app.settings.registration_s or None)
    if events:
        _log.info("registrations_updated", events=events)


def adopt_unprefixed_messages(lease: DutyLease) -> None:
    """Move what processes of an earlier release leave under broker keys without a prefix. The messages by
    which its beat process triggered sweeps are dropped: nobody consumes them, and there are 43,000 a day."""
    adopted = dispatch.adopt_unprefixed_messages(checkpoint=lease.renew)
    if adopted.moved:
        _log.info("unprefixed_messages_moved", count=adopted.moved)
    if adopted.dropped:
        hint = "stop `ourvidz worker clock`: it is gone"
        _log.warning("beat_messages_dropped", count=adopted.dropped, hint=hint)


def serve_former_io(_lease: DutyLease) -> None:
    """Serve the messages by which earlier releases ask for deliveries, or remove them."""
    dropped = dispatch.serve_former_io()
    if dropped:
        _log.info("delivery_messages_dropped", count=dropped)


def import_lists(lease: DutyLease) -> None:
    """Submit the raw jobs that callers pushed onto lists."""
    imported = dispatch.import_lists(checkpoint=lease.renew)
    if imported.accepted or imported.refused:
        _log.info("lists_imported", **asdict(imported))


def keep_house(lease: DutyLease) -> None:
    """Remove what would otherwise grow without bound: remains of records that expired by themselves, and the
    broker's queues of workers that have not been seen for a day."""
    ledger = control.current().ledger
    remains = remove_remains(ledger, lease.renew)
    lease.renew()
    queues = dispatch.remove_worker_queues({worker.id for worker in ledger.workers()})
    if remains or queues:
        _log.info("remains_removed", ledger=remains, queues=queues)
