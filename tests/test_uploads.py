"""Uploaded references: kept for their time, deleted after it, and nothing else is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ourvidz.errors import NotFound, ReferenceForbidden, ReferenceFrameError, StorageError
from ourvidz.jobs.urls import is_readable_by
from ourvidz.storage.keys import UPLOADS
from ourvidz.storage.local import LocalStore
from ourvidz.uploads import GROUPS, Upload, delete_expired, delete_upload, store_upload

NOW = 1_800_000_000.0
TTL_S = 3600.0
GROUP_S = TTL_S / GROUPS


def picture(colour: str = "teal") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A store in a directory."""
    return LocalStore(tmp_path)


def upload(store: Any, user_id: str = "ada", *, now: float = NOW, data: bytes | None = None) -> Upload:
    limits = {"max_bytes": 1 << 20, "max_pixels": 1 << 20}
    return store_upload(store, data or picture(), user_id=user_id, now=now, ttl_s=TTL_S, **limits)


def sweep(store: Any, now: float) -> int:
    return delete_expired(store, now=now, renew=lambda: None)


def files(store: LocalStore) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def test_the_path_is_one_that_jobs_of_the_user_may_name(store: LocalStore) -> None:
    """And that jobs of nobody else may."""
    stored = upload(store)
    assert store.exists(stored.path)
    assert is_readable_by("ada", stored.path)
    assert not is_readable_by("bob", stored.path)
    assert (stored.width, stored.height, stored.content_type) == (30, 20, "image/png")
    assert stored.size_bytes == len(store.get(stored.path))


def test_two_uploads_of_one_file_are_two_references(store: LocalStore) -> None:
    """Deleting one takes nothing from the other, and a path cannot be guessed."""
    first, second = upload(store), upload(store)
    delete_upload(store, first.path, user_id="ada")
    assert (store.exists(first.path), store.exists(second.path)) == (False, True)


def test_a_reference_is_kept_for_its_time_and_then_deleted(store: LocalStore) -> None:
    """With its marker: nothing of it remains."""
    stored = upload(store)
    assert NOW + TTL_S <= stored.expires_at <= NOW + TTL_S + GROUP_S
    assert sweep(store, stored.expires_at - 1) == 0
    assert store.exists(stored.path)
    assert sweep(store, stored.expires_at) == 1
    assert files(store) == []
    assert sweep(store, stored.expires_at) == 0


def test_only_what_has_expired_is_deleted(store: LocalStore) -> None:
    """Uploads of others, and files of the bucket that were never uploaded here."""
    old, new = upload(store), upload(store, "bob", now=NOW + TTL_S)
    own = "reference_images/ada/uploads/holiday.png"
    store.put(own, picture(), content_type="image/png")
    assert sweep(store, old.expires_at) == 1
    assert not store.exists(old.path)
    assert store.exists(new.path)
    assert store.exists(own)


def test_a_file_without_an_end_is_impossible(store: LocalStore) -> None:
    """A process that dies while it stores a reference leaves a marker and no file, never the reverse."""

    class Dying(LocalStore):
        def put(self, key: str, data: bytes, *, content_type: str) -> None:
            if not key.startswith(UPLOADS):
                raise StorageError("the process died")
            super().put(key, data, content_type=content_type)

    with pytest.raises(StorageError):
        upload(Dying(store.root))
    assert len(files(store)) == 1
    assert sweep(store, NOW + 2 * TTL_S) == 1
    assert files(store) == []


def test_a_sweep_that_is_interrupted_goes_on_later(store: LocalStore) -> None:
    """What cannot be deleted now is not forgotten."""
    stored = [upload(store, user_id) for user_id in ("ada", "bob")]

    class Failing(LocalStore):
        def delete(self, key: str) -> None:
            if "/bob/" in key:
                raise StorageError("the server is away")
            super().delete(key)

    sweep(Failing(store.root), NOW + 2 * TTL_S)
    assert [store.exists(one.path) for one in stored] == [False, True]
    sweep(store, NOW + 2 * TTL_S)
    assert files(store) == []


def test_a_group_that_cannot_be_listed_keeps_no_other(store: LocalStore) -> None:
    """An object whose name a library cannot read is in its way for good."""
    first, second = upload(store), upload(store, "bob", now=NOW + TTL_S)

    class Failing(LocalStore):
        def list_files(self, folder: str) -> Any:
            if str(int(first.expires_at)) in folder:
                raise StorageError("a name cannot be read")
            return super().list_files(folder)

    assert sweep(Failing(store.root), NOW + 3 * TTL_S) == 1
    assert [store.exists(one.path) for one in (first, second)] == [True, False]


def test_a_foreign_folder_beside_the_markers_is_left_alone(store: LocalStore) -> None:
    """Its name is no time."""
    store.put(f"{UPLOADS}/notes/ada/a.png", b"x", content_type="text/plain")
    assert sweep(store, 1e12) == 0
    assert len(files(store)) == 1


def test_a_deletion_may_be_repeated(store: LocalStore) -> None:
    """Its caller may not have had the first answer."""
    stored = upload(store)
    delete_upload(store, stored.path, user_id="ada")
    delete_upload(store, stored.path, user_id="ada")
    assert files(store) == []


def test_another_users_reference_is_not_deleted(store: LocalStore) -> None:
    """Whatever its path is."""
    stored = upload(store)
    with pytest.raises(ReferenceForbidden):
        delete_upload(store, stored.path, user_id="bob")
    assert store.exists(stored.path)


@pytest.mark.parametrize(
    "path",
    [
        *("", "reference_images/ada/holiday.png", "reference_images/ada/uploads/holiday.png"),
        *("workspace-temp/ada/uploads/{name}", "reference_images/ada/uploads/../../bob/{name}"),
        *("reference_images/ada/uploads/{name}/", "reference_images/ada/uploads/{name}\n"),
        *("reference_images/ada/uploads/٣-" + "0" * 32 + ".png", "reference_images//ada/uploads/{name}"),
    ],
)
def test_only_uploads_are_deleted(store: LocalStore, path: str) -> None:
    """Jobs' files and those that a frontend has stored have other ways to go."""
    stored = upload(store)
    with pytest.raises(NotFound):
        delete_upload(store, path.format(name=stored.path.rpartition("/")[2]), user_id="ada")
    assert store.exists(stored.path)


def test_a_file_that_is_no_image_is_not_stored(store: LocalStore) -> None:
    """Nor a marker for it."""
    with pytest.raises(ReferenceFrameError):
        upload(store, data=b"<html>hello</html>")
    assert files(store) == []


@pytest.mark.parametrize("hidden", [b"PK\x03\x04 an archive", b"<script>alert(1)</script>", b"GPS: 52.5"])
def test_what_is_hidden_in_an_image_file_is_not_stored(store: LocalStore, hidden: bytes) -> None:
    """After its end, in a comment, or in its EXIF block: a file may be an image and something else."""
    from PIL.PngImagePlugin import PngInfo

    comment = PngInfo()
    comment.add_text("Comment", hidden.decode())
    exif = Image.Exif()
    exif[0x010E] = hidden.decode()
    image, file = Image.new("RGB", (30, 20), "teal"), io.BytesIO()
    image.save(file, "PNG", pnginfo=comment, exif=exif)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", comment=hidden, exif=exif)
    for data in (file.getvalue() + hidden, jpeg.getvalue() + hidden):
        stored = upload(store, data=data)
        assert hidden in data
        assert hidden not in store.get(stored.path)


@pytest.mark.parametrize("name", [".emptyFolderPlaceholder", "a/b", "..hidden"])
def test_a_file_of_another_program_among_the_markers_stops_no_deletion(
    store: LocalStore, tmp_path: Path, name: str
) -> None:
    """Web consoles leave files in folders, and every later group stayed for good."""
    kept = upload(store)
    foreign = tmp_path / UPLOADS / "1000" / name
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    sweep(store, NOW + 2 * TTL_S)
    with pytest.raises(NotFound):
        store.get(kept.path)
