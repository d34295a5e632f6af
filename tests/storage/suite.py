"""The behaviour of every storage back end, as a class that the test class of each inherits."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import pytest
import requests
from PIL import Image

from ourvidz import uploads
from ourvidz.errors import InvalidParameters, NotFound
from ourvidz.storage.keys import UPLOADS
from ourvidz.storage.store import Store

KEY = "workspace-temp/user-1/job-1/0.png"
STAGED = "workspace-temp/user-1/job-1/.attempts/7.t/0.png"
PNG = "image/png"
CLOCK_S = 120.0
"""How far the clock of a storage may be off."""


def _move(store: Store, source: str, target: str, moved: list[bool]) -> None:
    """Move a file; append whether it was there."""
    try:
        store.move(source, target)
    except NotFound:
        moved.append(False)
    else:
        moved.append(True)


class StoreSuite:
    """The behaviour of every back end. A test class of a back end inherits it and has two fixtures. `store`:
    an empty store. `upload`: stores a file as other programs do, under any name."""

    def test_stored_bytes_are_read_back(self, store: Store) -> None:
        """Including all byte values, and the empty file."""
        store.put(KEY, bytes(range(256)) * 500, content_type=PNG)
        store.put("bucket/empty.bin", b"", content_type=PNG)
        assert store.get(KEY) == bytes(range(256)) * 500
        assert store.get("bucket/empty.bin") == b""
        assert store.exists(KEY)

    def test_a_second_put_replaces_the_first(self, store: Store) -> None:
        """A second attempt of a job writes the same keys."""
        store.put(KEY, b"a long first version", content_type=PNG)
        store.put(KEY, b"second", content_type=PNG)
        assert store.get(KEY) == b"second"

    def test_keys_do_not_affect_each_other(self, store: Store) -> None:
        """Files of one job never hide those of another."""
        store.put(KEY, b"0", content_type=PNG)
        store.put("workspace-temp/user-1/job-1/1.png", b"1", content_type=PNG)
        store.put("workspace-temp/user-1/job-10/0.png", b"10", content_type=PNG)
        store.delete(KEY)
        assert store.get("workspace-temp/user-1/job-1/1.png") == b"1"
        assert store.get("workspace-temp/user-1/job-10/0.png") == b"10"

    def test_a_missing_key_is_not_found(self, store: Store) -> None:
        """The HTTP service answers 404."""
        store.put(KEY, b"x", content_type=PNG)
        for key in ("workspace-temp/user-2/job-1/0.png", "workspace-temp/user-1", f"{KEY}/deeper.png"):
            assert not store.exists(key)
            with pytest.raises(NotFound):
                store.get(key)

    def test_deleting_twice_is_no_error(self, store: Store) -> None:
        """A deletion is repeated if its response was lost."""
        store.put(KEY, b"x", content_type=PNG)
        store.delete(KEY)
        store.delete(KEY)
        assert not store.exists(KEY)
        store.put(KEY, b"again", content_type=PNG)
        assert store.get(KEY) == b"again"

    def test_deleting_a_folder_deletes_the_keys_below_it_and_no_others(self, store: Store) -> None:
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

    def test_deleting_part_of_a_path_deletes_nothing(self, store: Store) -> None:
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
            "bucket/file\tname.png",
            "bucket/file.png\n",
            "bucket/file\0.png",
            "bucket/%2e%2e/file.png",
            "bucket/~file.png",
            "bucket/ünï.png",
            "bucket/" + "x" * 256,
            "bucket/" + "x/" * 450 + "x",
        ],
    )
    def test_a_malformed_key_is_rejected_by_every_operation(self, store: Store, key: str) -> None:
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

    @pytest.mark.parametrize(
        "name",
        [
            "my photo (1).png",
            " - holiday, 50 + 1 = $51! & 'more' @home; really?*.jpg",
            "status code: 416",
            "not found?token=x",
        ],
    )
    def test_a_file_that_a_user_has_named_is_read(
        self, store: Store, upload: Callable[[Store, str, bytes], None], name: str
    ) -> None:
        """Users upload references under such names. OurVidz gives no file one, and deletes none."""
        key = f"user-library/user-1/{name}"
        assert not store.exists(key)
        with pytest.raises(NotFound):
            store.get(key, start=2, length=3)
        upload(store, key, b"0123456789")
        store.put(KEY, b"other", content_type=PNG)
        assert store.get(key) == b"0123456789"
        assert store.get(key, start=2, length=3) == b"234"
        assert (store.stat(key).key, store.stat(key).size, store.exists(key)) == (key, 10, True)
        url = store.urls([key], lifetime_s=60)[key]
        assert unquote(urlsplit(url).path).endswith(key)
        if store.open_file(key) is None:
            assert requests.get(url, timeout=10).content == b"0123456789"
        for operation in (
            lambda: store.put(key, b"x", content_type=PNG),
            lambda: store.copy(KEY, key),
            lambda: store.move(key, KEY),
            lambda: store.delete(key),
            lambda: store.delete_folder(key),
        ):
            with pytest.raises(InvalidParameters):
                operation()
        assert store.get(key) == b"0123456789"

    def test_a_range_of_bytes_is_read(self, store: Store) -> None:
        """A player seeks in a clip; behind the end there is nothing, and no error."""
        store.put(KEY, b"0123456789", content_type=PNG)
        assert store.get(KEY, start=2, length=3) == b"234"
        assert store.get(KEY, start=7) == b"789"
        assert store.get(KEY, start=8, length=100) == b"89"
        assert store.get(KEY, length=4) == b"0123"
        assert store.get(KEY, length=0) == b""
        assert store.get(KEY, start=10) == b""
        assert store.get(KEY, start=11, length=1) == b""
        with pytest.raises(NotFound):
            store.get("workspace-temp/user-2/job-1/0.png", start=2, length=3)

    def test_a_file_is_described(self, store: Store) -> None:
        """Its size, age and type are known without reading it."""
        before = time.time()
        store.put(KEY, b"0123456789", content_type=PNG)
        described = store.stat(KEY)
        assert (described.key, described.size, described.content_type) == (KEY, 10, PNG)
        assert before - CLOCK_S < described.modified_at < time.time() + CLOCK_S
        with pytest.raises(NotFound):
            store.stat("workspace-temp/user-2/job-1/0.png")

    def test_a_folder_lists_every_file_below_it_and_no_others(self, store: Store) -> None:
        """What is left of a job is found so."""
        keys = {KEY, STAGED, "workspace-temp/user-1/job-1/0.thumb.webp"}
        for key in keys:
            store.put(key, b"12345", content_type=PNG)
        store.put("workspace-temp/user-1/job-10/0.png", b"0", content_type=PNG)
        listed = {file.key: file for file in store.list_files("workspace-temp/user-1/job-1")}
        assert set(listed) == keys
        assert listed[KEY].size == 5
        assert abs(listed[KEY].modified_at - time.time()) < CLOCK_S
        assert list(store.list_files("workspace-temp/user-2")) == []

    def test_a_copy_leaves_the_source(self, store: Store) -> None:
        """A result that is used again is copied to the keys of the new job."""
        store.put(KEY, b"old", content_type=PNG)
        store.put(STAGED, b"new", content_type=PNG)
        store.copy(STAGED, KEY)
        assert store.get(KEY) == store.get(STAGED) == b"new"
        assert store.stat(KEY).content_type == PNG
        with pytest.raises(NotFound):
            store.copy("workspace-temp/user-2/job-1/0.png", KEY)
        assert store.get(KEY) == b"new"

    def test_a_url_is_signed_for_each_key(self, store: Store) -> None:
        """All URLs of a page of jobs are made at once; a key that was asked for twice has one."""
        keys = [KEY, "workspace-temp/user-1/job-1/1.png", KEY]
        for key in keys:
            store.put(key, key.encode(), content_type=PNG)
        urls = store.urls(keys, lifetime_s=60)
        assert set(urls) <= set(keys)
        assert all(url.startswith("http") for url in urls.values())
        assert store.urls([], lifetime_s=60) == {}

    def test_a_deletion_during_a_move_wins(self, store: Store) -> None:
        """A job is deleted while its attempt publishes: no file of it is left, or the attempt knows that its
        file was deleted."""
        folder = "workspace-temp/user-1/job-1"
        for number in range(8):
            source, target = f"{folder}/.attempts/7.t/{number}.png", f"{folder}/{number}.png"
            store.put(source, b"new", content_type=PNG)
            moved: list[bool] = []
            mover = threading.Thread(target=_move, args=(store, source, target, moved))
            mover.start()
            store.delete_folder(folder)
            mover.join()
            if moved == [False]:
                store.delete(target)
            assert list(store.list_files(folder)) == []

    def test_every_allowed_character_works(self, store: Store) -> None:
        """Ids may have dots, colons and dashes, and 128 characters."""
        key = f"workspace-temp/A.b_c:d-9/{'j' * 128}/0.thumb.webp"
        store.put(key, b"x", content_type="image/webp")
        assert store.get(key) == b"x"

    def test_a_reader_never_sees_a_part_of_a_file(self, store: Store) -> None:
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

    def test_concurrent_writers_leave_one_complete_file(self, store: Store) -> None:
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

    def test_a_working_store_passes_its_check(self, store: Store) -> None:
        """`ourvidz doctor` runs it."""
        store.check()

    def test_a_move_replaces_what_was_there(self, store: Store) -> None:
        """An attempt publishes its files so; a reader sees one or the other."""
        store.put(KEY, b"old", content_type=PNG)
        store.put(STAGED, b"new", content_type=PNG)
        store.move(STAGED, KEY)
        assert store.get(KEY) == b"new"
        assert not store.exists(STAGED)

    def test_a_file_is_moved_once(self, store: Store) -> None:
        """Of an attempt and a deletion one has the file: the other must not bring it back."""
        store.put(STAGED, b"new", content_type=PNG)
        store.move(STAGED, KEY)
        store.delete_folder("workspace-temp/user-1/job-1")
        with pytest.raises(NotFound):
            store.move(STAGED, KEY)
        assert not store.exists(KEY)

    def test_folders_are_those_directly_below(self, store: Store) -> None:
        """The folders of earlier attempts are found so."""
        assert store.folders("workspace-temp/user-1/job-1") == []
        store.put(KEY, b"0", content_type=PNG)
        store.put(STAGED, b"0", content_type=PNG)
        store.put("workspace-temp/user-1/job-1/.attempts/12.u/0.png", b"0", content_type=PNG)
        assert store.folders("workspace-temp/user-1/job-1/.attempts") == ["12.u", "7.t"]
        assert store.folders(KEY) == []

    def test_uploaded_references_are_kept_for_their_time(self, store: Store) -> None:
        """A keeper finds what has expired by the folders of its markers, whatever the storage lists."""
        file, now, ttl_s = io.BytesIO(), 1_800_000_000.0, 3600.0
        Image.new("RGB", (8, 8), "teal").save(file, "PNG")
        limits = {"ttl_s": ttl_s, "max_bytes": 1 << 20, "max_pixels": 100}
        old, gone, new = (
            uploads.store_upload(store, file.getvalue(), user_id=user_id, now=at, **limits)
            for user_id, at in (("ada", now), ("bob", now), ("ada", now + ttl_s))
        )
        uploads.delete_upload(store, gone.path, user_id="bob")
        assert uploads.delete_expired(store, now=old.expires_at, renew=lambda: None) == 1
        assert [store.exists(one.path) for one in (old, gone, new)] == [False, False, True]
        assert uploads.delete_expired(store, now=new.expires_at, renew=lambda: None) == 1
        assert store.folders(UPLOADS) == []
