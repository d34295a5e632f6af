"""Verification of a log against its checkpoints."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from ourvidz.auditing.checkpoints import FOLDER, parse_note
from ourvidz.auditing.logfile import LogFile, LogOptions
from ourvidz.auditing.merkle import Frontier, leaf_hash, node_hash
from ourvidz.auditing.segments import segments_in
from ourvidz.auditing.signing import HMACKey
from ourvidz.auditing.verification import LogReport, verify_log
from ourvidz.errors import StorageError
from ourvidz.storage.local import LocalStore

KEY = HMACKey(b"a secret of the installation")
SMALL = LogOptions(segment_bytes=8000, checkpoint_entries=20)


@dataclass
class Installation:
    """A state directory with logs, and a storage."""

    root: Path
    store: LocalStore

    def open(self, options: LogOptions = SMALL, key: HMACKey = KEY) -> LogFile:
        return LogFile.open(self.root / "audit", "host", key, self.store, options)

    def write(self, entries: int, options: LogOptions = SMALL) -> str:
        """Open a log, append entries in small batches, close it, and return its id."""
        log = self.open(options)
        for number in range(0, entries, 5):
            log.append([entry(number + offset) for offset in range(min(5, entries - number))])
            log.sync()
        log.close()
        return log.id

    def segments(self, log_id: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in segments_in(self.root / "audit" / log_id)}

    def notes(self, log_id: str) -> dict[str, bytes]:
        return {file.key: self.store.get(file.key) for file in self.store.list_files(f"{FOLDER}/{log_id}")}

    def verify(self, log_id: str) -> LogReport:
        return verify_log(log_id, self.segments(log_id), self.notes(log_id), [KEY])


def entry(number: int) -> dict[str, object]:
    return {
        "at": "2026-01-01T00:00:00.000+00:00",
        "event": "request",
        "who": f"shop{number % 7}",
        "status": 202,
    }


def kinds(report: LogReport) -> set[str]:
    return {problem.kind for problem in report.problems}


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path, LocalStore(tmp_path / "assets"))


def test_the_tree_is_that_of_rfc_6962() -> None:
    """The root by the recursive definition, for each size up to 40."""

    def root(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        half = 1 << (len(leaves) - 1).bit_length() - 1
        return node_hash(root(leaves[:half]), root(leaves[half:]))

    leaves = [leaf_hash(b"%d" % number) for number in range(40)]
    tree = Frontier()
    for number, leaf in enumerate(leaves, start=1):
        tree.append(leaf)
        assert tree.root() == root(leaves[:number])
    assert leaf_hash(b"").hex().startswith("6e340b9c"), "the value of RFC 9162"


def test_an_untouched_log_of_several_segments_is_good(installation: Installation) -> None:
    """Also one that was closed and opened again."""
    log_id = installation.write(100)
    assert installation.write(50) == log_id
    report = installation.verify(log_id)
    assert (report.problems, report.crashes) == ([], 0)
    assert report.size == report.signed == 154
    assert len(installation.segments(log_id)) > 1


Segments = dict[str, bytes]


def _edit(segments: Segments, chance: random.Random) -> Segments:
    name = chance.choice(sorted(segments))
    data = bytearray(segments[name])
    at = chance.randrange(len(data))
    match chance.randrange(3):
        case 0:
            data[at] ^= chance.randrange(1, 256)
        case 1:
            del data[at : at + chance.randrange(1, 40)]
        case _:
            data[at:at] = chance.choice([b"x", b"\n", b'{"n":3,"at":"now"}\n', b"\x00"])
    return {**segments, name: bytes(data)}


def _swap(segments: Segments, chance: random.Random) -> Segments:
    places = [(name, at) for name, data in segments.items() for at in range(data.count(b"\n"))]
    lines = {name: data.split(b"\n") for name, data in segments.items()}
    (one, i), (other, j) = chance.sample(places, 2)
    lines[one][i], lines[other][j] = lines[other][j], lines[one][i]
    return {name: b"\n".join(parts) for name, parts in lines.items()}


def _cut(segments: Segments, chance: random.Random) -> Segments:
    name = chance.choice(sorted(segments))
    if chance.randrange(4) == 0:
        return {kept: data for kept, data in segments.items() if kept != name}
    cut = segments[name][: chance.randrange(len(segments[name]))]
    later = {kept: data for kept, data in segments.items() if kept < name}
    return {**later, name: cut} if chance.randrange(2) else {**segments, name: cut}


def test_a_thousand_random_changes_are_all_found(installation: Installation) -> None:
    """Edits of bytes, swapped lines, cut and missing files, all without access to the checkpoints."""
    log_id = installation.write(130)
    segments, notes = installation.segments(log_id), installation.notes(log_id)
    chance = random.Random(7)
    missed = []
    changes: list[Callable[[Segments, random.Random], Segments]] = [_edit, _swap, _cut]
    for number in range(1000):
        changed = changes[number % 3](segments, chance)
        if changed != segments and not verify_log(log_id, changed, notes, [KEY]).problems:
            missed.append(number)
    assert missed == []


@pytest.mark.parametrize("number", [0, 1, 19, 20, 60, 133])
def test_the_first_changed_entry_is_named(installation: Installation, number: int) -> None:
    """By the signed hashes, also if a later one was changed too."""
    log_id = installation.write(132)
    segments = installation.segments(log_id)
    for changed in (number, 133):
        name = max(name for name in segments if int(name[:18]) <= changed)
        lines = segments[name].split(b"\n")
        at = changed - int(name[:18]) + 1
        lines[at] = lines[at].replace(b"2026", b"2027")
        segments[name] = b"\n".join(lines)
    report = verify_log(log_id, segments, installation.notes(log_id), [KEY])
    problem = next(problem for problem in report.problems if problem.kind == "bad_entry")
    assert problem.entry == number


def test_a_cut_tail_is_found_also_after_the_log_was_continued(installation: Installation) -> None:
    """A log that lacks what was signed is left as it is, and another one is begun."""
    log_id = installation.write(30)
    (path,) = segments_in(installation.root / "audit" / log_id)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-4]))
    assert installation.write(30) != log_id
    report = installation.verify(log_id)
    assert [(problem.kind, problem.entry) for problem in report.problems] == [("cut", 28)]


def test_a_log_that_was_replaced_by_another_history_is_forked(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state directory is restored from a copy while the storage does not answer: both histories are
    signed."""
    log_id = installation.write(30)
    folder = installation.root / "audit" / log_id
    before = {path: path.read_bytes() for path in (*segments_in(folder), folder / "checkpoint")}
    installation.write(10)
    for path, data in before.items():
        path.write_bytes(data)

    def fail(folder: str) -> object:
        raise StorageError("no answer")

    with monkeypatch.context() as broken:
        broken.setattr(installation.store, "list_files", fail)
        assert installation.write(12) == log_id
    assert "forked" in kinds(installation.verify(log_id))


def test_a_forged_checkpoint_is_found(installation: Installation) -> None:
    """A changed number or signature, a checkpoint of another key, and none at all."""
    log_id = installation.write(30)
    segments, notes = installation.segments(log_id), installation.notes(log_id)
    name = max(notes)
    damaged = {**notes, name: notes[name].replace(b"\n32\n", b"\n31\n")}
    assert "bad_checkpoint" in kinds(verify_log(log_id, segments, damaged, [KEY]))
    checkpoint = parse_note(notes[name]).checkpoint
    foreign = verify_log(log_id, segments, {name: checkpoint.sign(HMACKey(b"another"))}, [KEY])
    assert (kinds(foreign), foreign.other_keys) == ({"no_checkpoint"}, 1)
    assert "no_checkpoint" in kinds(verify_log(log_id, segments, {}, [KEY]))


def test_a_checkpoint_of_another_log_does_not_count(installation: Installation) -> None:
    """Also if its signature is valid, and if a log takes the name of another one."""
    one = installation.open()
    other_id = installation.write(30)
    one.close()
    renamed: Mapping[str, bytes] = installation.segments(other_id)
    assert kinds(verify_log(one.id, renamed, installation.notes(other_id), [KEY])) >= {"bad_checkpoint"}
    assert installation.verify(one.id).problems == []


def test_the_oldest_segments_are_dropped_and_an_entry_says_so(installation: Installation) -> None:
    """What is left can be verified; one segment less than was said is missing."""
    options = LogOptions(segment_bytes=4096, max_bytes=12_000, checkpoint_entries=20)
    log_id = installation.write(400, options)
    report = installation.verify(log_id)
    assert report.problems == []
    assert report.first > 0
    segments = installation.segments(log_id)
    assert sum(map(len, segments.values())) <= options.max_bytes + 2 * options.segment_bytes
    del segments[min(segments)]
    pretended = b'{"n":%d,"event":"segments_dropped","before":%d}\n' % (report.size, report.size)
    segments[max(segments)] += pretended
    assert "missing" in kinds(verify_log(log_id, segments, installation.notes(log_id), [KEY]))


def test_an_entry_has_no_control_characters(installation: Installation) -> None:
    """A caller's text cannot begin a line, nor change how a terminal shows it."""
    log = installation.open()
    log.append([{"event": "request", "who": 'a\n{"n":9}\x1b[2J\x7f\u202e\u2066' + "x" * 1000}])
    log.close()
    (data,) = installation.segments(log.id).values()
    assert all(byte == 10 or 32 <= byte < 127 for byte in data)
    assert max(map(len, data.split(b"\n"))) < 500
    assert installation.verify(log.id).problems == []
