"""Files of an attempt: nobody reads them before the attempt has proved that the job is still its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from campaigns.s3_server import S3Server
from ourvidz.errors import Cancelled, StorageError, WorkerUnavailable
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.records.record import Claim, Verdict
from ourvidz.settings import load_settings
from ourvidz.storage.local import LocalStore
from ourvidz.wiring.storage import open_store
from ourvidz.workflows.run import FenceLost, LeasedRun
from tests.factories import image_job

KEY = "workspace-temp/u/a/0.png"
FOLDER = "workspace-temp/u/a"
DONE = Outcome(status="completed", assets=(Asset(type="image", key=KEY),))


class Link(Ledger):
    """One worker's connection to the ledger, which can be cut."""

    cut = False

    def step(self, *args: Any, **kwargs: Any) -> Verdict:
        self._check()
        return super().step(*args, **kwargs)

    def renew(self, *args: Any, **kwargs: Any) -> bool:
        self._check()
        return super().renew(*args, **kwargs)

    def _check(self) -> None:
        if self.cut:
            raise WorkerUnavailable("the job store cannot be reached")


@pytest.fixture(autouse=True)
def every_step_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these tests are about what a report says, and not about how often there is one."""
    monkeypatch.setattr("ourvidz.workflows.run.REPORT_INTERVAL_S", 0.0)


@pytest.fixture
def ledger(make_ledger: Callable[..., Any]) -> Link:
    ledger: Link = make_ledger(Link)
    ledger.register(image_job("a", user_id="u"), priority=6)
    return ledger


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def claimed(ledger: Ledger, token: str) -> Claim:
    claim = ledger.claim("a", 1, worker_id=token, lease_s=10, token=token)
    assert claim is not None
    return claim


def leased(ledger: Ledger, claim: Claim, **options: Any) -> LeasedRun:
    return LeasedRun(claim, ledger, **({"lease_s": 10.0, "limit_s": 100.0} | options))


def files(store: LocalStore) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def test_a_file_is_read_under_its_final_key_only_after_publishing(ledger: Link, store: LocalStore) -> None:
    """Afterwards nothing else is left."""
    with leased(ledger, claimed(ledger, "t")) as run:
        run.put(store, KEY, b"mine", "image/png")
        assert not store.exists(KEY)
        run.publish(DONE)
        assert store.get(KEY) == b"mine"
    assert files(store) == [KEY]
    assert ledger.dead_attempt_folders() == []


def test_files_that_no_asset_names_are_not_published(ledger: Link, store: LocalStore) -> None:
    """A first try with a reference may have stored a thumbnail that the second could not make."""
    with leased(ledger, claimed(ledger, "t")) as run:
        run.put(store, KEY, b"mine", "image/png")
        run.put(store, f"{FOLDER}/0.thumb.webp", b"old", "image/webp")
        run.publish(DONE)
    assert files(store) == [KEY]


def test_after_the_end_of_its_lease_a_cut_off_attempt_writes_nothing(ledger: Link, store: LocalStore) -> None:
    """It waits for the ledger: the work may still count. Another attempt has ended the job: it does not."""
    claim = claimed(ledger, "first")
    now = [claim.lease_deadline - 1]
    waited = threading.Event()

    def sleep(seconds: float) -> None:
        assert files(store) == [KEY]
        waited.set()
        ledger.cut = False

    run = leased(ledger, claim, clock=lambda: now[0], sleep=sleep)
    assert ledger.rescue(claim)
    with leased(ledger, claimed(ledger, "second")) as other:
        other.put(store, KEY, b"second", "image/png")
        other.publish(DONE)
    ledger.cut = True
    now[0] += 2
    with pytest.raises(FenceLost):
        run.put(store, KEY, b"first", "image/png")
    assert waited.is_set()
    assert store.get(KEY) == b"second"


def test_an_attempt_whose_ledger_was_away_for_long_publishes_its_work(
    ledger: Link, store: LocalStore
) -> None:
    """Nobody could take the job while the server was away."""
    claim = claimed(ledger, "t")
    now = [claim.lease_deadline + 140]
    ledger.cut = True

    def sleep(seconds: float) -> None:
        ledger.cut = False

    run = leased(ledger, claim, clock=lambda: now[0], sleep=sleep)
    run.put(store, KEY, b"mine", "image/png")
    run.publish(DONE)
    assert store.get(KEY) == b"mine"
    assert run.lease_deadline == now[0] + 10


def test_an_attempt_that_froze_while_it_published_cannot_go_on(ledger: Link, store: LocalStore) -> None:
    """Frozen after its last look at the lease, it wakes when another attempt has ended the job."""
    claim = claimed(ledger, "first")
    frozen = leased(ledger, claim)
    frozen.put(store, KEY, b"first", "image/png")
    ledger.rescue(claim)
    with leased(ledger, claimed(ledger, "second")) as other:
        other.put(store, KEY, b"second", "image/png")
        other.publish(DONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "_check_lease", lambda: None)
        patch.setattr(frozen._files, "_remove_earlier", lambda store, folder, again: None)
        with pytest.raises(FenceLost):
            frozen.publish(DONE)
    assert store.get(KEY) == b"second"


def test_an_attempt_whose_claim_a_failover_lost_overwrites_nothing(ledger: Link, store: LocalStore) -> None:
    """The next claim has the same run and fence, and another token."""
    claim = claimed(ledger, "second")
    frozen = leased(ledger, replace(claim, record=replace(claim.record, token="first")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "_check_lease", lambda: None)
        frozen.put(store, KEY, b"first", "image/png")
        with leased(ledger, claim) as other:
            other.put(store, KEY, b"second", "image/png")
            other.publish(DONE)
        with pytest.raises(FenceLost):
            frozen.publish(DONE)
    assert store.get(KEY) == b"second"


def test_an_attempt_that_froze_does_not_recreate_a_deleted_file(ledger: Link, store: LocalStore) -> None:
    """A caller that deleted its files must not find one again."""
    frozen = leased(ledger, claimed(ledger, "first"))
    frozen.put(store, KEY, b"first", "image/png")
    store.delete_folder(FOLDER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "_check_lease", lambda: None)
        with pytest.raises(FenceLost):
            frozen.publish(DONE)
    assert files(store) == []


class MeetingStore(LocalStore):
    """Each move waits until `meeting` others are in progress."""

    meeting: threading.Barrier

    def move(self, source: str, key: str) -> None:
        self.meeting.wait(10)
        super().move(source, key)


def outcome_of(keys: list[str]) -> Outcome:
    return Outcome(status="completed", assets=tuple(Asset(type="image", key=key) for key in keys))


def test_files_are_published_side_by_side(ledger: Link, tmp_path: Path) -> None:
    """Where a move is several requests, a job with many files would keep its worker waiting."""
    store, keys = MeetingStore(tmp_path), [f"{FOLDER}/{number}.png" for number in range(4)]
    store.meeting = threading.Barrier(4)
    with leased(ledger, claimed(ledger, "t")) as run:
        for key in keys:
            run.put(store, key, b"mine", "image/png")
        run.publish(outcome_of(keys))
    assert files(store) == keys


def test_a_file_that_cannot_be_published_stops_the_others(
    ledger: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt goes on when no move is in progress any more, with the error of the one that failed."""
    store, keys = LocalStore(tmp_path), [f"{FOLDER}/{number}.png" for number in range(20)]
    moved, move, lock = [], store.move, threading.Lock()

    def fail_once(source: str, key: str) -> None:
        with lock:
            if key == keys[-1]:
                raise RuntimeError("a bug")
            moved.append(key)
        move(source, key)

    monkeypatch.setattr(store, "move", fail_once)
    with leased(ledger, claimed(ledger, "t")) as run:
        for key in keys:
            run.put(store, key, b"mine", "image/png")
        with pytest.raises(RuntimeError, match="a bug"):
            run.publish(outcome_of(keys))
        assert files(store) == sorted([*moved, *(run._files._staged_key(key) for key in run._files._staged)])


class CopyingStore(LocalStore):
    """Moves by a copy and a deletion, as S3 does; `between` is called after the copy."""

    between: Callable[[], object]

    def move(self, source: str, key: str) -> None:
        self.copy(source, key)
        self.between()
        self.stat(source)
        self.delete(source)


@pytest.mark.parametrize("has_ended", [True, False], ids=["deleted", "being deleted"])
def test_a_file_that_was_copied_while_its_job_was_deleted_is_withdrawn(
    ledger: Link, tmp_path: Path, has_ended: bool
) -> None:
    """The deletion has looked through the folder before the server's copy was there."""
    store, claim = CopyingStore(tmp_path), claimed(ledger, "first")

    def delete_job() -> None:
        data = store.get(KEY)
        ledger.rescue(claim)
        ledger.request_cancel("a")
        ledger.end(ledger.get("a"), outcome=Outcome.failure(Cancelled("cancelled")))
        ledger.begin_deletion("a", force=True)
        store.delete_folder(FOLDER)
        if has_ended:
            ledger.delete("a")
        store.put(KEY, data, content_type="image/png")

    store.between = delete_job
    with leased(ledger, claim) as run:
        run.put(store, KEY, b"mine", "image/png")
        with pytest.raises(FenceLost):
            run.publish(DONE)
        assert store.exists(KEY)
    assert files(store) == []


def test_a_lost_attempt_withdraws_no_file_of_a_job_that_exists(ledger: Link, tmp_path: Path) -> None:
    """It may be that of the next attempt by now."""
    store, claim = CopyingStore(tmp_path), claimed(ledger, "first")
    later: list[LeasedRun] = []

    def publish_later() -> None:
        store.between = lambda: None
        ledger.rescue(claim)
        with leased(ledger, claimed(ledger, "second")) as other:
            other.put(store, KEY, b"second", "image/png")
            other.publish(DONE)
            later.append(other)

    store.between = publish_later
    with leased(ledger, claim) as run:
        run.put(store, KEY, b"first", "image/png")
        with pytest.raises(FenceLost):
            run.publish(DONE)
    assert later
    assert files(store) == [KEY]


def test_an_earlier_attempt_does_not_remove_the_files_of_a_later_one(ledger: Link, store: LocalStore) -> None:
    """Frozen before it removes what others left, it would cost the present attempt its files."""
    claim = claimed(ledger, "first")
    earlier = leased(ledger, claim)
    earlier.put(store, KEY, b"first", "image/png")
    ledger.rescue(claim)
    later = leased(ledger, claimed(ledger, "second"))
    later.put(store, KEY, b"second", "image/png")
    earlier._files._remove_earlier(store, FOLDER)
    later.publish(DONE)
    assert store.get(KEY) == b"second"


def test_a_cancelled_attempt_publishes_nothing_and_leaves_nothing(ledger: Link, store: LocalStore) -> None:
    """The caller asked for no files."""
    with leased(ledger, claimed(ledger, "t")) as run:
        run.put(store, KEY, b"mine", "image/png")
        ledger.request_cancel("a")
        with pytest.raises(Cancelled):
            run.publish(DONE)
    assert files(store) == []


def test_a_lost_answer_of_a_move_is_no_failure(ledger: Link, store: LocalStore) -> None:
    """A remote storage may have moved the file although its answer was lost."""
    with leased(ledger, claimed(ledger, "t")) as run:
        run.put(store, KEY, b"mine", "image/png")
        store.move(run._files._staged_key(KEY), KEY)
        run._files._move(store, KEY, True)
    assert store.get(KEY) == b"mine"


def test_the_files_of_a_worker_that_died_are_found(ledger: Link, store: LocalStore) -> None:
    """Not those of a running attempt."""
    claim = claimed(ledger, "t")
    leased(ledger, claim).put(store, KEY, b"mine", "image/png")
    assert ledger.dead_attempt_folders() == []
    ledger.rescue(claim)
    ((job_id, token, folder),) = ledger.dead_attempt_folders()
    assert (job_id, token) == ("a", "t")
    store.delete_folder(folder)
    ledger.untrack_attempt_folder(job_id, token, folder)
    assert files(store) == []
    assert ledger.dead_attempt_folders() == []


def test_the_files_of_an_attempt_are_known_before_the_first(ledger: Link, store: LocalStore) -> None:
    """The claim notes the folder under the name that the attempt gives it; the commit removes the note."""
    claim = claimed(ledger, "t")
    run = leased(ledger, claim)
    assert run.emptied_folders() == [run._files._own(FOLDER)]
    ledger.rescue(claim)
    assert ledger.dead_attempt_folders() == [("a", "t", run._files._own(FOLDER))]
    later = claimed(ledger, "u")
    with leased(ledger, later) as other:
        other.put(store, KEY, b"mine", "image/png")
        other.publish(DONE)
        emptied = other.emptied_folders()
        assert ledger.end(later, outcome=DONE, emptied_folders=emptied)
        other.note_commit(emptied)
    assert [token for _, token, _ in ledger.dead_attempt_folders()] == ["t"]


def test_the_files_of_a_job_that_an_earlier_release_recorded_are_known(
    ledger: Link, store: LocalStore
) -> None:
    """Its record names no bucket: the report before the first file names the folder."""
    claim = claimed(ledger, "t")
    ledger.untrack_attempt_folder("a", "t", f"{FOLDER}/.attempts/{claim.fence}.t")
    older = replace(claim, record=replace(claim.record, bucket=None))
    with leased(ledger, older) as run:
        assert run.emptied_folders() == []
        run.put(store, KEY, b"mine", "image/png")
        ledger.rescue(claim)
        assert [token for _, token, _ in ledger.dead_attempt_folders()] == ["t"]


def test_a_storage_that_fails_after_any_request_costs_an_attempt_and_no_file(
    ledger: Link, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the first attempt is stopped, the second publishes its files, and nothing else is left."""
    monkeypatch.setattr("ourvidz.workflows.staging.PUT_BACKOFF_S", 0)
    monkeypatch.setattr("ourvidz.storage.s3_client.RETRIES", 0)
    store = open_store(load_settings(_env_file=None, **s3_server.environment("attempts")))
    store.create_buckets()

    def attempt(job_id: str, token: str) -> None:
        claim = ledger.claim(job_id, 1, worker_id=token, lease_s=10, token=token)
        assert claim is not None
        keys = [f"workspace-temp/u/{job_id}/{name}" for name in ("0.png", "0.thumb.webp")]
        try:
            with leased(ledger, claim) as run:
                for key in keys:
                    run.put(store, key, token.encode(), "image/png")
                run.publish(outcome_of(keys))
        except StorageError:
            pass
        ledger.rescue(claim)

    s3_server.requests.clear()
    attempt("a", "only")
    requests = s3_server.requests.total()
    assert store.get(KEY) == b"only"
    for served in range(requests):
        job_id = f"job-{served}"
        ledger.register(image_job(job_id, user_id="u"), priority=6)
        s3_server.fail(1000, after=served)
        attempt(job_id, "first")
        s3_server.fail(0)
        attempt(job_id, "second")
        folder = f"workspace-temp/u/{job_id}"
        assert {file.key: store.get(file.key) for file in store.list_files(folder)} == {
            f"{folder}/0.png": b"second",
            f"{folder}/0.thumb.webp": b"second",
        }
