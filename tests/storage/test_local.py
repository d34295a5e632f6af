"""Local storage stays inside its directory and survives full disks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ourvidz.errors import InvalidParameters, StorageError
from ourvidz.storage.local import LocalStore
from tests.storage.suite import StoreSuite

KEY = "workspace-temp/user-1/job-1/0.png"
PNG = "image/png"


class TestBehaviour(StoreSuite):
    """Local storage behaves as every back end."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path / "assets", "http://127.0.0.1:7860")

    @pytest.fixture
    def upload(self) -> Callable[[LocalStore, str, bytes], None]:
        def write(store: LocalStore, key: str, data: bytes) -> None:
            (store.root / key).parent.mkdir(parents=True, exist_ok=True)
            (store.root / key).write_bytes(data)

        return write


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_a_key_is_a_path_below_the_root(tmp_path: Path) -> None:
    """Operators find files by their keys, and nothing else is there."""
    LocalStore(tmp_path / "a" / "b").put(KEY, b"x", content_type=PNG)
    assert files_under(tmp_path) == [f"a/b/{KEY}"]


def test_urls_are_on_the_shim(tmp_path: Path) -> None:
    """Browsers read assets from the shim; without a public URL there is none."""
    store = LocalStore(tmp_path, "http://127.0.0.1:7860/")
    assert store.urls([KEY], lifetime_s=1) == {KEY: f"http://127.0.0.1:7860/assets/{KEY}"}
    assert LocalStore(tmp_path).urls([KEY], lifetime_s=1) == {}
    with pytest.raises(InvalidParameters):
        store.urls(["bucket/../x"], lifetime_s=1)


def test_publishing_a_file_waits_for_the_disk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait takes a job's worker milliseconds, and an emptied folder needs none."""
    store, staged = LocalStore(tmp_path), f"{Path(KEY).parent}/.attempts/7.t"
    store.put(f"{staged}/0.png", b"x", content_type=PNG)
    waits: list[int] = []
    monkeypatch.setattr("os.fsync", waits.append)
    store.move(f"{staged}/0.png", KEY)
    store.delete_folder(staged)
    assert len(waits) == 1
    assert [path.name for path in (tmp_path / Path(KEY).parent).iterdir()] == ["0.png"]
    store.delete_folder(str(Path(KEY).parent))
    assert len(waits) == 2


@pytest.mark.parametrize("link", ["workspace-temp", "workspace-temp/user-1", KEY])
def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path, link: str) -> None:
    """It must neither reveal nor change files outside."""
    outside = tmp_path / "outside"
    target = outside / Path(KEY).relative_to(link) if link != KEY else outside
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("secret")
    root = tmp_path / "root"
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(outside)
    store = LocalStore(root)
    for operation in (
        lambda: store.get(KEY),
        lambda: store.exists(KEY),
        lambda: store.put(KEY, b"overwritten", content_type=PNG),
        lambda: store.delete(KEY),
    ):
        with pytest.raises(StorageError, match="leads out"):
            operation()
    assert target.read_text() == "secret"


def test_a_listing_names_keys_only(tmp_path: Path) -> None:
    """A file that is still being written, or that an operator has left there, is no stored file."""
    store = LocalStore(tmp_path)
    store.put(KEY, b"x", content_type=PNG)
    (tmp_path / KEY).with_name("~half").write_text("x")
    (tmp_path / KEY).with_name("a file.txt").write_text("x")
    assert [file.key for file in store.list_files("workspace-temp/user-1")] == [KEY]


def test_the_directory_is_created(tmp_path: Path) -> None:
    """`ourvidz storage init` says what it has made."""
    store = LocalStore(tmp_path / "a" / "assets")
    assert store.create_buckets() == [str(tmp_path / "a" / "assets")]
    assert (tmp_path / "a" / "assets").is_dir()
    assert store.create_buckets() == []


def test_links_inside_the_root_are_followed(tmp_path: Path) -> None:
    """Operators may link a bucket under another name."""
    store = LocalStore(tmp_path)
    store.put("bucket/file.png", b"x", content_type=PNG)
    (tmp_path / "other").symlink_to(tmp_path / "bucket")
    assert store.get("other/file.png") == b"x"


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    """Large disks are mounted elsewhere and linked."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "assets").symlink_to(tmp_path / "disk")
    store = LocalStore(tmp_path / "assets")
    store.put(KEY, b"x", content_type=PNG)
    assert store.get(KEY) == b"x"


def test_a_loop_of_links_is_a_storage_error(tmp_path: Path) -> None:
    """Its own exception would not be handled by callers."""
    (tmp_path / "bucket").symlink_to(tmp_path / "bucket")
    with pytest.raises(StorageError):
        LocalStore(tmp_path).put("bucket/file.png", b"x", content_type=PNG)


def test_a_file_in_the_way_is_a_storage_error_without_paths(tmp_path: Path) -> None:
    """Callers read the message: it names the key, not the directories of the server."""
    store = LocalStore(tmp_path)
    store.put("bucket/name", b"x", content_type=PNG)
    with pytest.raises(StorageError) as refused:
        store.put("bucket/name/deeper.png", b"x", content_type=PNG)
    assert str(tmp_path) not in refused.value.message
    assert "bucket/name/deeper.png" in refused.value.message


FULL_DISK = """
import json, resource, sys
from pathlib import Path
from ourvidz.errors import StorageError
from ourvidz.storage.local import LocalStore

store = LocalStore(Path(sys.argv[1]))
store.put("bucket/old.png", b"old" * 1000, content_type="image/png")
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
messages = []
for key in ("bucket/old.png", "bucket/new.png"):
    try:
        store.put(key, b"x" * 200_000, content_type="image/png")
    except StorageError as error:
        messages.append(error.message)
store.put("bucket/small.png", b"fits", content_type="image/png")
old, new = store.get("bucket/old.png").decode(), store.exists("bucket/new.png")
print(json.dumps({"messages": messages, "old": old, "new": new}))
"""


def test_a_full_disk_is_a_storage_error_and_leaves_other_files_intact(tmp_path: Path) -> None:
    """The write stops half-way: the old file must stay complete, and no temporary file may remain."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    report = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    )
    assert report["messages"] == [
        f"bucket/{name}.png could not be written: File too large." for name in ("old", "new")
    ]
    assert report["old"] == "old" * 1000
    assert report["new"] is False
    assert files_under(tmp_path) == ["bucket/old.png", "bucket/small.png"]


def test_the_check_leaves_no_files_and_reports_the_reason(tmp_path: Path) -> None:
    """`ourvidz doctor` runs it on the operator's disk."""
    LocalStore(tmp_path / "good").check()
    assert files_under(tmp_path) == []
    (tmp_path / "bad").write_text("a file where the directory should be")
    with pytest.raises(StorageError, match="could not be written"):
        LocalStore(tmp_path / "bad").check()


def test_a_folder_of_another_program_is_not_listed(tmp_path: Path) -> None:
    """Its name is no part of a key, and ended the duty that met it."""
    store = LocalStore(tmp_path)
    store.put("checkpoints/jobs/a/1.t/x", b"x", content_type="text/plain")
    (tmp_path / "checkpoints/jobs/@eaDir").mkdir()
    assert store.folders("checkpoints/jobs") == ["a"]
