"""Arrivals of jobs for a simulation: a day made of a pattern, or rows of a file."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ourvidz.errors import InvalidParameters
from ourvidz.jobs.catalog import CATALOG, JobType, lookup

HOUR_S = 3600.0
DAY_LOAD = (
    0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.4, 1.0, 2.0, 3.2, 4.4, 5.4, 6.2, 6.8, 7.0, 6.6,
    5.8, 5.0, 4.2, 3.2, 2.0, 1.0, 0.3, 0.0,
)  # fmt: skip
"""Mean number of busy workers in each hour of the pattern `day`: nobody at night, the most at two o'clock."""
SPREAD = 0.2
"""How far a run's real time may be from the expected one, as a share of it."""
MAX_FILE_S = 31 * 86400.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One job: when it is submitted (seconds from the start), how long it is expected to run, and how long it
    really runs on one worker (seconds)."""

    at_s: float
    expected_s: float
    run_s: float


def day_of_arrivals(queue: str, *, seed: int = 0) -> list[Arrival]:
    """Return a day of jobs of a queue's first two types, at random times, whose load follows `DAY_LOAD`."""
    rng = random.Random(seed)
    types = [row for row in CATALOG.values() if row.queue == queue][:2]
    mean_s = sum(row.expected_s[1] for row in types) / len(types)
    arrivals = []
    for hour, load in enumerate(DAY_LOAD):
        at_s = hour * HOUR_S
        while load and (at_s := at_s + rng.expovariate(load / mean_s)) < (hour + 1) * HOUR_S:
            expected_s = rng.choice(types).expected_s[1]
            run_s = expected_s * rng.uniform(1 - SPREAD, 1 + SPREAD)
            arrivals.append(Arrival(at_s, expected_s, run_s))
    return arrivals


def read_arrivals(lines: Iterable[str]) -> dict[str, list[Arrival]]:
    """Read a CSV file with the columns `at_s`, `type` and, optional, `run_s`; returns the arrivals by queue.

    `at_s`: seconds from the start, in any order. `run_s`: how long the job ran; the expected time of its type
    where it is missing. Raises `InvalidParameters` with the line, or for a file without any.
    """
    arrivals: dict[str, list[Arrival]] = {}
    reader = csv.DictReader(lines)
    if not {"at_s", "type"} <= set(reader.fieldnames or ()):
        raise InvalidParameters("The file needs the columns at_s and type.", field="arrivals")
    for row in _rows(reader):
        job_type = _job_type(row, reader.line_num)
        expected_s = job_type.expected_s[1]
        at_s = _seconds(row["at_s"], reader.line_num)
        run_s = _seconds(row["run_s"], reader.line_num) if row.get("run_s") else expected_s
        arrivals.setdefault(job_type.queue, []).append(Arrival(at_s, expected_s, run_s))
    if not arrivals:
        raise InvalidParameters("The file has no arrivals: no line follows the header.", field="arrivals")
    return {queue: sorted(jobs, key=lambda job: job.at_s) for queue, jobs in arrivals.items()}


def _rows(reader: csv.DictReader[str]) -> Iterator[dict[str, str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise _malformed(reader.line_num, str(error)) from None


def _job_type(row: dict[str, str], line: int) -> JobType:
    job_type = lookup(row["type"] or "")
    if job_type is None:
        raise _malformed(line, f"{row['type']!r} is no job type")
    return job_type


def _seconds(text: str | None, line: int) -> float:
    try:
        seconds = float(text or "")
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_FILE_S:
        raise _malformed(line, f"{text!r} is no time from 0 to {MAX_FILE_S:.0f} seconds")
    return seconds


def _malformed(line: int, reason: str) -> InvalidParameters:
    return InvalidParameters(f"Line {line} of the arrivals: {reason}.", field="arrivals")
