"""Verification of a log against its signed checkpoints: what was changed, cut off or written twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ourvidz.auditing.checkpoints import Checkpoint, parse_note
from ourvidz.auditing.merkle import Frontier, leaf_hash
from ourvidz.auditing.segments import header, is_entry, parse_header, segment_name
from ourvidz.auditing.signing import SigningKey

LOG_OPENED = "log_opened"
SEGMENTS_DROPPED = "segments_dropped"
CRASH = "crash"
Kind = Literal["bad_entry", "cut", "forked", "missing", "bad_header", "bad_checkpoint", "no_checkpoint"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a log, and from which entry on; None where no entry can be named."""

    kind: Kind
    entry: int | None
    message: str


@dataclass(slots=True)
class LogReport:
    """The result for one log: its entries from `first` to `size`, how many checkpoints have signed, and the
    first problem of each kind."""

    log: str
    first: int = 0
    size: int = 0
    signed: int = 0
    checkpoints: int = 0
    other_keys: int = 0
    """Checkpoints that keys have signed which are not known here: nothing is compared with them."""
    crashes: int = 0
    """How often its process ended without closing it: entries of the last moments may never have been
    written."""
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: Kind, entry: int | None, message: str) -> None:
        """Note a problem. Of those of one kind the one of the first entry stays."""
        known = next((problem for problem in self.problems if problem.kind == kind), None)
        if known is not None and (known.entry is None or entry is None or known.entry <= entry):
            return
        self.problems = [problem for problem in self.problems if problem is not known]
        self.problems.append(Problem(kind, entry, message))


@dataclass(slots=True)
class _Entries:
    """What the files of a log contain: the tree before the first entry, and the lines."""

    base: Frontier
    lines: list[bytes] = field(default_factory=list)


def verify_log(
    log: str, segments: Mapping[str, bytes], notes: Mapping[str, bytes], keys: Sequence[SigningKey]
) -> LogReport:
    """Compare the segments of a log (name → content) with its checkpoints (name → note).

    Entries after the last checkpoint are read, but nothing vouches for them: `size - signed` of them.
    """
    report = LogReport(log)
    checkpoints = _valid_checkpoints(report, notes, keys)
    leaves = _signed_leaves(report, checkpoints)
    entries = _read(report, segments)
    report.first, report.size = entries.base.size, entries.base.size + len(entries.lines)
    report.checkpoints = len(checkpoints)
    report.signed = checkpoints[-1].size if checkpoints else 0
    if not checkpoints:
        report.add("no_checkpoint", None, "no checkpoint with a valid signature")
    _compare_entries(report, entries, leaves)
    _compare_roots(report, entries, checkpoints)
    return report


def _valid_checkpoints(
    report: LogReport, notes: Mapping[str, bytes], keys: Sequence[SigningKey]
) -> list[Checkpoint]:
    """The checkpoints of this log that a known key has signed, the shortest first."""
    valid = []
    for name, data in sorted(notes.items()):
        try:
            note = parse_note(data)
        except ValueError:
            report.add("bad_checkpoint", None, f"checkpoint {name} cannot be read")
            continue
        checked = note.check(keys)
        if checked is None:
            report.other_keys += 1
        elif not checked or note.checkpoint.log != report.log:
            report.add("bad_checkpoint", None, f"checkpoint {name} has no valid signature for this log")
        else:
            valid.append(note.checkpoint)
    return sorted(valid, key=lambda checkpoint: checkpoint.size)


def _signed_leaves(report: LogReport, checkpoints: Sequence[Checkpoint]) -> dict[int, bytes]:
    """The leaf hashes that checkpoints have signed. Two of them that differ are two histories of one log."""
    leaves: dict[int, bytes] = {}
    roots: dict[int, bytes] = {}
    for checkpoint in checkpoints:
        for number, leaf in enumerate(checkpoint.leaves, start=checkpoint.first):
            if leaves.setdefault(number, leaf) != leaf:
                report.add("forked", number, f"two signed checkpoints differ in entry {number}")
                break
        if roots.setdefault(checkpoint.size, checkpoint.root) != checkpoint.root:
            entry = checkpoint.size - 1
            report.add("forked", entry, f"two signed checkpoints of {checkpoint.size} entries differ")
    return leaves


def _read(report: LogReport, segments: Mapping[str, bytes]) -> _Entries:
    """Read the segments until one does not follow the one before."""
    entries, tree = None, Frontier()
    for position, (name, data) in enumerate(sorted(segments.items())):
        first_line, *lines = data.split(b"\n")
        try:
            own = parse_header(first_line)
        except (ValueError, RecursionError):
            report.add("bad_header", tree.size, f"the header of {name} cannot be read")
            break
        if entries is None:
            entries, tree = _Entries(own), Frontier(own.size, own.hashes)
        if own.size > tree.size:
            report.add("missing", tree.size, f"entries {tree.size} to {own.size - 1} are missing")
            break
        if first_line != header(report.log, tree) or name != segment_name(tree.size) or not lines:
            report.add("bad_header", tree.size, f"the header of {name} is not that of its place")
            break
        incomplete = lines.pop()
        if incomplete and position < len(segments) - 1:
            report.add("bad_entry", tree.size + len(lines), f"entry {tree.size + len(lines)} is incomplete")
            break
        for line in lines:
            if not is_entry(line, tree.size):
                report.add("bad_entry", tree.size, f"entry {tree.size} is none, or that of another place")
            tree.append(leaf_hash(line))
        entries.lines += lines
    return entries or _Entries(Frontier())


def _compare_entries(report: LogReport, entries: _Entries, leaves: Mapping[int, bytes]) -> None:
    """Name the first entry whose hash is not the signed one, count crashes, and find what was dropped."""
    dropped = 0
    for number, line in enumerate(entries.lines, start=report.first):
        if leaves.get(number, leaf := leaf_hash(line)) != leaf:
            report.add("bad_entry", number, f"entry {number} is not the one that was signed")
        if b'"log_' in line or b'"segments_' in line:
            document = _document(line)
            before = document.get("before")
            # Anybody who can write the file can append an entry that is not signed.
            dropping = document.get("event") == SEGMENTS_DROPPED and number < report.signed
            if dropping and isinstance(before, int):
                dropped = max(dropped, before)
            report.crashes += document.get("event") == LOG_OPENED and document.get("after") == CRASH
    if report.first > dropped:
        report.add("missing", dropped, f"entries {dropped} to {report.first - 1} are missing")


def _compare_roots(report: LogReport, entries: _Entries, checkpoints: Sequence[Checkpoint]) -> None:
    """Compare the root at the size of each checkpoint, and the length with the longest."""
    signed = {checkpoint.size: checkpoint.root for checkpoint in checkpoints}
    tree = Frontier(entries.base.size, entries.base.hashes)
    good = tree.size
    if tree.size and tree.size not in signed:
        report.add("bad_header", tree.size, f"no checkpoint has signed what was before entry {tree.size}")
    for line in (None, *entries.lines):
        if line is not None:
            tree.append(leaf_hash(line))
        root = signed.get(tree.size)
        if root is None or (not tree.size):
            continue
        if tree.root() != root:
            if line is None:
                report.add("bad_header", tree.size, f"what was before entry {tree.size} is not as signed")
            elif all(problem.kind != "bad_entry" for problem in report.problems):
                last = tree.size - 1
                report.add("bad_entry", good, f"one of the entries {good} to {last} is not the one signed")
            break
        good = tree.size
    if report.signed > report.size:
        count = report.signed - report.size
        report.add("cut", report.size, f"{count} signed entries are missing, from entry {report.size} on")


def _document(line: bytes) -> dict[str, object]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
