"""Random faults under load: does every accepted job end once, and does its caller hear of it once?

    python -m campaigns.faults [--jobs 5000] [--events 1000] [--seed 1] [--pause 1] [--storage NAME]
                               [--folder DIR] [--json]

Runs in parts of 50 events, each on a new stack (`ourvidz up` with one worker without weights), with
submitters that repeat a submission until it is accepted and a receiver that fails in every way. Files are
stored in a directory (`local`), or on a server with the API of S3 (`s3`) or of Supabase Storage
(`supabase`), which is overloaded and cut off as well. With `--folder` the result of each part is kept there;
a campaign that was interrupted goes on after its last complete part.

After the last event of a part everything is healed, and its jobs are inspected. Every column but `jobs`,
`events`, `cancelled` and `charged` must be 0, else the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from campaigns.events import Bench, possible_events
from campaigns.load import Load, unreadable_images
from campaigns.receiver import UnreliableReceiver
from campaigns.stack import Stack
from campaigns.storages import STORAGES
from ourvidz.cli.console import print_note
from ourvidz.records.record import FINISHED, Record
from ourvidz.recovery.inspection import check_events, check_jobs, check_user_indexes

EVENTS_PER_PART = 50
UNBLOCKED_S = 60.0
"""After the last fault some job must end this often while jobs are unfinished; else they count as blocked."""
LOST_S = 180.0
"""When no job has ended for this long, those that are unfinished count as lost."""
UNHEARD_S = 120.0
"""How long after its job's end a callback may be missing; then the job counts as lost."""
FAILING = 0.25
"""Share of the deliveries that the receiver fails."""
INTERRUPTIONS = ("WORKER_LOST", "TIMEOUT_ERROR")
"""Failures that a job is charged for when its worker dies or hangs."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one part. Everything after `charged` counts broken promises.

    `charged`: attempts that ended because a worker was killed or silent for longer than a lease. `lost`: jobs
    without an end, or whose caller never heard of it. `doubled`: more than one terminal event. `blocked`:
    unfinished when no job had ended for a minute after the last fault. `failed`: ended otherwise than
    completed or cancelled, without charged attempts or a failed storage. `innocent`: charged attempts beyond
    the number of faults that interrupt one. `files_missing`: images that cannot be read. `orphans`: files
    that belong to no job. `damaged`: records, indexes and callbacks that do not agree, as
    `ourvidz ledger check` finds them.
    """

    seed: int
    seconds: float
    jobs: int
    events: int
    cancelled: int
    charged: int
    lost: int
    doubled: int
    blocked: int
    failed: int
    innocent: int
    files_missing: int
    orphans: int
    damaged: int = 0

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not any(getattr(self, name) for name in BROKEN)


COLUMNS = tuple(field.name for field in fields(Result))
BROKEN = COLUMNS[COLUMNS.index("charged") + 1 :]


def run_part(
    folder: Path, *, jobs: int, events: int, seed: int, pause_s: float, storage: str = "local"
) -> Result:
    """Run one part: break things while jobs are submitted, heal, inspect."""
    started = time.monotonic()
    chance = random.Random(seed)
    with (
        UnreliableReceiver(failing=FAILING, hang_s=5, seed=seed) as receiver,
        STORAGES[storage](folder / "assets") as files,
        Stack(folder, receiver, storage=files) as stack,
    ):
        load = Load(stack.shim, jobs=jobs, events=events, seed=seed)
        bench = Bench(stack, receiver, chance, load.accepted)
        possible, missing = possible_events(stack)
        for reason in missing:
            print_note(f"left out: {reason}")
        for number in range(events):
            load.allow()
            (event,) = chance.choices(list(possible), list(possible.values()))
            print_note(f"{time.monotonic() - started:6.1f} s  {number + 1:3}  {event(bench)}")
            time.sleep(chance.uniform(0, pause_s))
        stack.clock.step_to(0)
        receiver.healthy.set()
        stack.wait_until_live()
        load.finish()
        return _inspect(bench, load, seed=seed, events=events, started=started)


def _inspect(bench: Bench, load: Load, *, seed: int, events: int, started: float) -> Result:
    stack, receiver = bench.stack, bench.receiver
    lost, blocked = _wait_for_ends(stack, load.accepted)
    unheard = receiver.wait_for(load.accepted, within_s=UNHEARD_S)
    records = stack.ledger.records(load.accepted)
    charges: Counter[str] = Counter()
    for record in records:
        charges.update(record.failures)
    charged = sum(charges[code] for code in INTERRUPTIONS)
    doubled = [name for name in load.accepted if len(receiver.endings[name]) > 1]
    deadline = time.monotonic() + UNBLOCKED_S
    while (orphans := _orphans(stack, records)) and time.monotonic() < deadline:
        time.sleep(0.5)
    damaged = _damaged(stack)
    result = Result(
        seed=seed,
        seconds=round(time.monotonic() - started, 1),
        jobs=len(load.accepted),
        events=events,
        cancelled=sum(record.status == "cancelled" for record in records),
        charged=charged,
        lost=len(set(lost) | set(unheard)) + len(load.accepted) - len(records),
        doubled=len(doubled) + _counted_twice(stack, records),
        blocked=blocked,
        failed=sum(_failed_without_cause(record, bench) for record in records),
        innocent=max(0, charged - bench.interrupted),
        files_missing=sum(unreadable_images(stack.storage.read, record) for record in records),
        orphans=len(orphans),
        damaged=len(damaged),
    )
    if not result.kept:
        broken = {"lost": lost, "unheard": unheard, "doubled": doubled, "orphans": orphans}
        _explain(stack, broken | {"damaged": damaged}, records)
    if load.unexpected:
        print_note(f"unexpected answers of the shim: {load.unexpected}")
    return result


def _wait_for_ends(stack: Stack, job_ids: list[str]) -> tuple[list[str], int]:
    """Wait until all jobs have ended. Returns the ids of those that did not, and how many were blocked."""
    before, changed_at, blocked = len(job_ids), time.monotonic(), 0
    while True:
        finished = {record.job_id for record in stack.ledger.records(job_ids) if record.finished}
        unfinished = [job_id for job_id in job_ids if job_id not in finished]
        if len(unfinished) < before:
            before, changed_at = len(unfinished), time.monotonic()
        still_s = time.monotonic() - changed_at
        if unfinished and still_s > UNBLOCKED_S:
            blocked = max(blocked, len(unfinished))
        if not unfinished or still_s > LOST_S:
            return unfinished, blocked
        time.sleep(0.5)


def _counted_twice(stack: Stack, records: list[Record]) -> int:
    """How many more endings the ledger counted than jobs ended."""
    counters = stack.ledger.counters()
    endings = sum(counters.get(f"jobs.sdxl_image_fast.{status}", 0) for status in sorted(FINISHED))
    return max(0, endings - sum(record.finished for record in records))


def _failed_without_cause(record: Record, bench: Bench) -> bool:
    """Whether a job failed though no attempt of it was interrupted and the storage did not fail."""
    if record.status != "failed" or record.outcome is None or record.outcome.error is None:
        return False
    code = record.outcome.error.code
    return code not in INTERRUPTIONS and not (code == "STORAGE_ERROR" and bench.storage_failed)


def _orphans(stack: Stack, records: list[Record]) -> list[str]:
    """The stored files that no ended job names."""
    assets = [asset for record in records if record.outcome for asset in record.outcome.assets]
    named = {asset.key for asset in assets} | {asset.thumbnail_key for asset in assets}
    return [key for key in stack.storage.keys_of_jobs() if key not in named]


def _damaged(stack: Stack) -> list[str]:
    """What the check of the ledger finds, as sentences."""
    ledger = stack.ledger
    findings = [
        *check_events(ledger, ledger.event_ids(), repair=False),
        *check_jobs(ledger, ledger.job_ids(), repair=False),
        *check_user_indexes(ledger, repair=False),
    ]
    return [f"{finding.subject}: {finding.detail}" for finding in findings]


def _explain(stack: Stack, findings: dict[str, list[str]], records: list[Record]) -> None:
    """Print what is known about broken promises."""
    for what, names in findings.items():
        if names:
            print_note(f"{what}: {', '.join(names[:10])}")
    for record in records:
        concerned = any(record.job_id in names for names in findings.values())
        if concerned or record.status == "failed" or not record.finished:
            print_note(repr(record))
    print_note(stack.log_tails())


def run(
    folder: Path, *, jobs: int, events: int, seed: int, pause_s: float, storage: str = "local"
) -> list[Result]:
    """Run every part that has no result in `folder` yet."""
    parts = max(1, round(events / EVENTS_PER_PART))
    results = []
    for part in range(parts):
        result_file = folder / f"part-{part}.json"
        if not result_file.exists():
            with tempfile.TemporaryDirectory(prefix="ourvidz-faults-") as state:
                result = run_part(
                    Path(state) / "state",
                    jobs=jobs // parts,
                    events=events // parts,
                    seed=seed * 1000 + part,
                    pause_s=pause_s,
                    storage=storage,
                )
            result_file.write_text(json.dumps(asdict(result)))
        results.append(Result(**json.loads(result_file.read_text())))
        print_note(f"part {part + 1} of {parts}: {results[-1]}")
    return results


def print_table(results: list[Result]) -> None:
    """Print one line for each part, and their sum."""
    print("".join(f"{name:>14}" for name in COLUMNS))
    for result in results:
        print("".join(f"{getattr(result, name):>14}" for name in COLUMNS))
    if len(results) > 1:
        sums = [f"{sum(getattr(result, name) for result in results):>14g}" for name in COLUMNS[1:]]
        print(f"{'all':>14}" + "".join(sums), flush=True)


def main() -> None:
    """Run the campaign and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=5000, help="number of jobs in all")
    parser.add_argument("--events", type=int, default=1000, help="number of faults in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=1.0, help="most seconds between two faults")
    parser.add_argument("--storage", choices=list(STORAGES), default="local", help="where files are stored")
    parser.add_argument("--folder", type=Path, help="where the results of the parts are kept")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON document")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ourvidz-faults-results-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = run(
            folder,
            jobs=arguments.jobs,
            events=arguments.events,
            seed=arguments.seed,
            pause_s=arguments.pause,
            storage=arguments.storage,
        )
    if arguments.json:
        print(json.dumps([asdict(result) for result in results]))
    else:
        print_table(results)
    sys.exit(0 if all(result.kept for result in results) else 1)


if __name__ == "__main__":
    main()
