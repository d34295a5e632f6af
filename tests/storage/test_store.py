"""The behaviour of every storage back end. A new one is added to `BACK_ENDS`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ourvidz.errors import InvalidParameters, NotFound
from ourvidz.storage.local import LocalStore
from ourvidz.storage.store import Store

BACK_ENDS: dict[str, Callable[[Path], Store]] = {
    "local": lambda folder: LocalStore(folder / "assets"),
}

KEY = "workspace-temp/user-1/job-1/0.png"
STAGED = "workspace-temp/user-1/job-1/.attempts/7.t/0.png"
PNG = "image/png"


@pytest.fixture(params=BACK_ENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each back end."""
    return BACK_ENDS[request.param](tmp_path)


def test_stored_bytes_are_read_back(store: Store) -> None:
    """Including all byte values, and the empty file."""
    store.put(KEY, bytes(range(256)) * 500, content_type=PNG)
    store.put("bucket/empty.bin", b"", content_type=PNG)
    assert store.get(KEY) == bytes(range(256)) * 500
    assert store.get("bucket/empty.bin") == b""
    assert store.exists(KEY)


def test_a_second_put_replaces_the_first(store: Store) -> None:
    """A second attempt of a job writes the same keys."""
    store.put(KEY, b"a long first version", content_type=PNG)
    store.put(KEY, b"second", content_type=PNG)
    assert store.get(KEY) == b"second"


def test_keys_do_not_affect_each_other(store: Store) -> None:
    """Files of one job never hide those of another."""
    store.put(KEY, b"0", content_type=PNG)
    store.put("workspace-temp/user-1/job-1/1.png", b"1", content_type=PNG)
    store.put("workspace-temp/user-1/job-10/0.png", b"10", content_type=PNG)
    store.delete(KEY)
    assert store.get("workspace-temp/user-1/job-1/1.png") == b"1"
    assert store.get("workspace-temp/user-1/job-10/0.png") == b"10"


def test_a_missing_key_is_not_found(store: Store) -> None:
    """The HTTP service answers 404."""
    store.put(KEY, b"x", content_type=PNG)
    for key in ("workspace-temp/user-2/job-1/0.png", "workspace-temp/user-1", f"{KEY}/deeper.png"):
        assert not store.exists(key)
        with pytest.raises(NotFound):
            store.get(key)


def test_deleting_twice_is_no_error(store: Store) -> None:
    """A deletion is repeated if its response was lost."""
    store.put(KEY, b"x", content_type=PNG)
    store.delete(KEY)
    store.delete(KEY)
    assert not store.exists(KEY)
    store.put(KEY, b"again", content_type=PNG)
    assert store.get(KEY) == b"again"


def test_deleting_a_folder_deletes_the_keys_below_it_and_no_others(store: Store) -> None:
    """It also deletes files of failed attempts; a job whose id has the same prefix is not affected."""
    for key in (
        "workspace-temp/u/job/0.png",
        "workspace-temp/u/job/0.thumb.webp",
        "workspace-temp/u/job2/0.png",
    ):
        store.put(key, b"x", content_type=PNG)
    store.delete_folder("workspace-temp/u/job")
    store.delete_folder("workspace-temp/u/job")
    assert not store.exists("workspace-temp/u/job/0.png")
    assert not store.exists("workspace-temp/u/job/0.thumb.webp")
    assert store.exists("workspace-temp/u/job2/0.png")
    with pytest.raises(InvalidParameters):
        store.delete_folder("workspace-temp/../job2")


def test_deleting_part_of_a_path_deletes_nothing(store: Store) -> None:
    """A key is one file, not a folder."""
    store.put(KEY, b"x", content_type=PNG)
    store.delete("workspace-temp/user-1")
    store.delete(f"{KEY}/deeper.png")
    assert store.get(KEY) == b"x"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "bucket",
        "/bucket/file.png",
        "bucket/",
        "bucket//file.png",
        "bucket/../file.png",
        "../bucket/file.png",
        "bucket/./file.png",
        "bucket/.../file.png",
        "bucket/..",
        "bucket\\file.png",
        "bucket/file name.png",
        "bucket/file.png\n",
        "bucket/file\0.png",
        "bucket/%2e%2e/file.png",
        "bucket/~file.png",
        "bucket/ünï.png",
        "bucket/" + "x" * 256,
    ],
)
def test_a_malformed_key_is_rejected_by_every_operation(store: Store, key: str) -> None:
    """Keys come from callers; none may lead out of its bucket."""
    for operation in (
        lambda: store.put(key, b"x", content_type=PNG),
        lambda: store.get(key),
        lambda: store.exists(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(InvalidParameters) as refused:
            operation()
        assert refused.value.field == "key"


def test_every_allowed_character_works(store: Store) -> None:
    """Ids may have dots, colons and dashes, and 128 characters."""
    key = f"workspace-temp/A.b_c:d-9/{'j' * 128}/0.thumb.webp"
    store.put(key, b"x", content_type="image/webp")
    assert store.get(key) == b"x"


def test_a_reader_never_sees_a_part_of_a_file(store: Store) -> None:
    """A retry replaces a file while it is being read."""
    versions = [bytes([at]) * 300_000 for at in range(2)]
    store.put(KEY, versions[0], content_type=PNG)
    done, seen = threading.Event(), set()

    def read() -> None:
        while not done.is_set():
            seen.add(store.get(KEY))

    reader = threading.Thread(target=read)
    reader.start()
    for attempt in range(40):
        store.put(KEY, versions[attempt % 2], content_type=PNG)
    done.set()
    reader.join()
    assert seen <= set(versions)
    assert seen


def test_concurrent_writers_leave_one_complete_file(store: Store) -> None:
    """Two attempts may overlap for a moment; one of their files remains."""
    versions = [bytes([at]) * 200_000 for at in range(8)]
    writers = [
        threading.Thread(target=store.put, args=(KEY, data), kwargs={"content_type": PNG})
        for data in versions
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert store.get(KEY) in versions


def test_a_working_store_passes_its_check(store: Store) -> None:
    """`ourvidz doctor` runs it."""
    store.check()


def test_a_move_replaces_what_was_there(store: Store) -> None:
    """An attempt publishes its files so; a reader sees one or the other."""
    store.put(KEY, b"old", content_type=PNG)
    store.put(STAGED, b"new", content_type=PNG)
    store.move(STAGED, KEY)
    assert store.get(KEY) == b"new"
    assert not store.exists(STAGED)


def test_a_file_is_moved_once(store: Store) -> None:
    """Of two attempts, or an attempt and a deletion, one has the file: the other must not bring it back."""
    store.put(STAGED, b"new", content_type=PNG)
    store.move(STAGED, KEY)
    store.delete_folder("workspace-temp/user-1/job-1")
    with pytest.raises(NotFound):
        store.move(STAGED, KEY)
    assert not store.exists(KEY)


def test_folders_are_those_directly_below(store: Store) -> None:
    """The folders of earlier attempts are found so."""
    assert store.folders("workspace-temp/user-1/job-1") == []
    store.put(KEY, b"0", content_type=PNG)
    store.put(STAGED, b"0", content_type=PNG)
    store.put("workspace-temp/user-1/job-1/.attempts/12.u/0.png", b"0", content_type=PNG)
    assert store.folders("workspace-temp/user-1/job-1/.attempts") == ["12.u", "7.t"]
    assert store.folders(KEY) == []
