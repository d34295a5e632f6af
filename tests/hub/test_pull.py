"""Pulling a checkpoint from a hub on this machine, with the faults of networks, hubs and disks."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ourvidz.errors import HubError
from ourvidz.hub import pull as pull_module
from ourvidz.hub.catalog import Part
from ourvidz.hub.manifest import mark_in_use, read_manifest
from ourvidz.hub.pull import pull
from ourvidz.hub.staging import staged_bytes, staging_folder
from ourvidz.settings import environment
from tests.hub_server import TinyHub

pytestmark = pytest.mark.system

WEIGHTS = "unet/diffusion_pytorch_model.fp16.safetensors"
ROOT = Path(__file__).parents[2]

MakeHub = Callable[..., Any]


def content(folder: Path) -> dict[str, bytes]:
    """The pulled files of a folder, without the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "ourvidz-pull.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_pull_brings_half_precision_weights_configs_and_the_card(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """Other formats, the second precision, pickles and single files would double the download, or could run
    code."""
    result = pull(make_hub(), part, record)
    expected = tiny_hub.files(repository, "main") or {}
    names = {
        *("README.md", "LICENSE.md", "model_index.json", "scheduler/scheduler_config.json"),
        *("tokenizer/vocab.json", "tokenizer/merges.txt", "unet/config.json", "vae/config.json"),
        *(WEIGHTS, "vae/diffusion_pytorch_model.fp16.safetensors"),
    }
    assert content(part.folder) == {name: expected[name] for name in names}
    assert (result.state, result.manifest.licence) == ("pulled", "the-meadow-licence")
    assert result.manifest.commit == tiny_hub.commit(repository)
    assert read_manifest(part.folder) == result.manifest
    assert not staging_folder(part.folder).exists()


def test_a_second_pull_asks_the_hub_for_nothing(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """So it may be repeated in every deployment, also where the hub cannot be reached."""
    pull(make_hub(), part, record)
    tiny_hub.requests.clear()
    assert pull(make_hub(), part, record).state == "present"
    assert tiny_hub.requests == []


def test_a_cut_connection_is_continued_where_it_broke(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str, pauses: list[float]
) -> None:
    """At most one block of a file is sent twice."""
    tiny_hub.cuts[WEIGHTS] = [2_500_000]
    pull(make_hub(), part, record)
    size = len((tiny_hub.files(repository, "main") or {})[WEIGHTS])
    ranges = [request.headers.get("range") for request in tiny_hub.requests if request.server == "cdn"]
    assert "bytes=2097152-" in ranges
    assert record.bytes_received < size + 2_000 + (1 << 20)
    assert pauses == [1.0]


def test_a_hub_that_ignores_ranges_sends_the_whole_file_again(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """Appended to what has arrived, the file would be damaged."""
    tiny_hub.cuts[WEIGHTS], tiny_hub.ignores_ranges = [2_500_000], True
    pull(make_hub(), part, record)
    assert content(part.folder)[WEIGHTS] == (tiny_hub.files(repository, "main") or {})[WEIGHTS]


def test_a_pull_that_gives_up_is_continued_by_the_next_one(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """What has arrived is kept, and files that are complete are not asked for again."""
    tiny_hub.cuts[WEIGHTS] = [2_500_000, *[0] * 9]
    with pytest.raises(HubError, match="try again later, what has arrived is kept"):
        pull(make_hub(), part, record)
    assert not part.folder.exists()
    assert staged_bytes(part.folder) > 2_000_000
    tiny_hub.cuts.clear()
    tiny_hub.requests.clear()
    result = pull(make_hub(), part, record)
    assert tiny_hub.downloads() == [
        WEIGHTS,
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert (WEIGHTS, result.manifest.files[WEIGHTS].size, 2 << 20) in record.begun


def test_a_killed_pull_is_continued_in_the_middle_of_a_file_and_at_its_commit(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str, tmp_path: Path
) -> None:
    """The branch moved meanwhile: two commits would be mixed."""
    first = tiny_hub.commit(repository)
    tiny_hub.stalls[WEIGHTS] = 2_500_000
    child = subprocess.Popen(
        [sys.executable, "-m", "ourvidz.cli.main", "models", "pull", "sdxl"],
        env=environment(
            PYTHONPATH=str(ROOT), OURVIDZ_MODELS_DIR=str(part.folder.parent), OURVIDZ_HUB_SDXL=repository
        ),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    assert tiny_hub.stalled.wait(60)
    until = time.monotonic() + 20
    while staged_bytes(part.folder) < 2 << 20:
        assert time.monotonic() < until, "what has arrived is not written"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    asked = {request.path.split("/")[1] for request in tiny_hub.requests if request.server == "hub"}
    assert (asked, tiny_hub.requests[0].path) == (
        {"api", "meadow"},
        f"/api/models/{repository}/revision/main",
    ), "the library asks nothing of its own"
    assert len([request for request in tiny_hub.requests if request.path.startswith("/api/")]) == 1
    moved = dict(tiny_hub.files(repository, "main") or {}, **{"model_index.json": b'{"new": 1}'})
    tiny_hub.repositories[repository]["old"] = tiny_hub.repositories[repository]["main"]
    tiny_hub.add(repository, moved)
    assert not part.folder.exists()
    assert pull(make_hub(), part, record).manifest.commit == first
    assert (WEIGHTS, 3_000_085, 2 << 20) in record.begun
    assert pull(make_hub(), part, record, update=True).manifest.commit == tiny_hub.commit(repository) != first


def test_an_update_downloads_what_changed_only(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """A new model card must not cost 7 GB."""
    pull(make_hub(), part, record)
    tiny_hub.requests.clear()
    changed = dict(tiny_hub.files(repository, "main") or {}, **{"model_index.json": b'{"new": 1}'})
    tiny_hub.add(repository, changed)
    pull(make_hub(), part, record, update=True)
    assert [name for name in tiny_hub.downloads() if name.endswith(".safetensors")] == []
    assert content(part.folder)["model_index.json"] == b'{"new": 1}'


def test_a_new_revision_in_the_setting_is_pulled(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """The setting decides, not what happens to be in the folder."""
    pull(make_hub(), part, record)
    files = tiny_hub.files(repository, "main") or {}
    tiny_hub.add(repository, {**files, "unet/config.json": b'{"v": 2}'}, branch="v2")
    result = pull(make_hub(), replace(part, revision="v2"), record)
    assert (result.state, result.manifest.revision) == ("pulled", "v2")
    assert content(part.folder)["unet/config.json"] == b'{"v": 2}'


def test_a_file_with_a_wrong_checksum_is_downloaded_again_and_then_refused(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """A proxy that damages files must not leave one under its name; small files are verified too."""
    tiny_hub.corrupt = {WEIGHTS: 1, "unet/config.json": 1}
    pull(make_hub(), part, record)
    assert len([note for note in record.notes if "checksum differs" in note]) == 2
    shutil.rmtree(part.folder)
    tiny_hub.corrupt = {WEIGHTS: 2}
    with pytest.raises(HubError, match="has not the checksum that the hub lists"):
        pull(make_hub(), part, record)
    assert not part.folder.exists()
    assert WEIGHTS not in content(staging_folder(part.folder))


def test_a_pickle_under_the_name_of_a_safetensors_file_is_refused(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """The name alone says nothing about the content."""
    files = tiny_hub.files(repository, "main") or {}
    tiny_hub.add(repository, {**files, WEIGHTS: b"\x80\x04\x95" + bytes(200)})
    with pytest.raises(HubError, match=f"{WEIGHTS} is a pickle: refused"):
        pull(make_hub(), part, record)


def test_the_token_is_sent_to_the_hub_only(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str, caplog: Any
) -> None:
    """The CDN belongs to somebody else, and logs are read by many."""
    caplog.set_level("DEBUG")
    tiny_hub.token = "hf_a-secret-token"
    tiny_hub.cuts[WEIGHTS] = [1_500_000]
    pull(make_hub(HF_TOKEN=tiny_hub.token), part, record)
    by_server: dict[str, set[str | None]] = {"hub": set(), "cdn": set()}
    for request in tiny_hub.requests:
        by_server[request.server].add(request.headers.get("authorization"))
    assert by_server == {"hub": {"Bearer hf_a-secret-token"}, "cdn": {None}}
    assert "secret-token" not in caplog.text + str(record) + repr(content(part.folder).keys())


@pytest.mark.parametrize(
    ("prepare", "variables", "message"),
    [
        (lambda hub: setattr(hub, "token", "right"), {}, "it needs a token: correct OURVIDZ_HUB_SDXL or set"),
        (
            lambda hub: setattr(hub, "token", "right"),
            {"HF_TOKEN": "wrong"},
            "refuses the token: correct HF_T",
        ),
        (lambda hub: hub.gated.add("meadow/tiny"), {}, "is gated: accept its terms at http://127.*HF_TOKEN"),
        (lambda hub: hub.repositories.clear(), {}, "shows no repository meadow/tiny .HTTP 404.: it does not"),
        (lambda hub: hub.refusals.append((429, {"Retry-After": "900"})), {}, "HTTP 429; .* pause of 900 s"),
        (lambda hub: hub.refusals.extend([(503, {})] * 6), {}, "HTTP 503: try again later"),
        (lambda hub: hub.refusals.append((418, {})), {}, "answers HTTP 418 .* check HF_ENDPOINT"),
        (lambda hub: hub.refusals.append((200, {})), {}, "no usable answer .*: check HF_ENDPOINT"),
    ],
)
def test_an_error_of_the_hub_is_one_line_with_a_fix(
    make_hub: MakeHub,
    part: Part,
    record: Any,
    tiny_hub: TinyHub,
    repository: str,
    prepare: Callable[[TinyHub], None],
    variables: dict[str, str],
    message: str,
) -> None:
    """An operator reads it at the end of a log, and needs no traceback."""
    prepare(tiny_hub)
    with pytest.raises(HubError, match=message) as caught:
        pull(make_hub(**variables), part, record)
    assert "\n" not in caught.value.message
    assert not part.folder.exists()


def test_an_unknown_revision_and_an_unreachable_hub_are_named(
    make_hub: MakeHub, part: Part, record: Any, repository: str
) -> None:
    """The first is a mistake in a setting, the second one of the network."""
    with pytest.raises(HubError, match="meadow/tiny has no revision v9: correct OURVIDZ_HUB_SDXL"):
        pull(make_hub(), replace(part, revision="v9"), record)
    with pytest.raises(HubError, match=r"http://127\.0\.0\.1:1: no connection .* HF_ENDPOINT"):
        pull(make_hub(HF_ENDPOINT="http://127.0.0.1:1"), part, record)


def test_the_hub_decides_how_long_a_pause_is(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str, pauses: list[float]
) -> None:
    """Other errors wait longer each time."""
    tiny_hub.refusals = [(429, {"Retry-After": "17"}), (503, {}), (500, {})]
    assert pull(make_hub(), part, record).state == "pulled"
    assert pauses == [17.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}", "Wan2.1_VAE.pth": b"PK"}, "lacks model_index.json"),
        ({"model_index.json": b"{}", "unet/diffusion_pytorch_model.bin": b"x"}, "only a pickle .unet/.*bin."),
        ({"model_index.json": b"{}", "unet/config.json": b"{}"}, "has no weights"),
        ({"model_index.json": b"{}", "unet/..": b"{}"}, "is no plain path"),
    ],
)
def test_a_repository_without_usable_files_is_refused(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, files: dict[str, bytes], message: str
) -> None:
    """Before anything is downloaded; the setting that names it is in the line."""
    tiny_hub.add("meadow/tiny", files)
    with pytest.raises(HubError, match=message):
        pull(make_hub(), part, record)
    assert tiny_hub.downloads() == []


def test_two_pulls_at_once_download_each_file_once(
    make_hub: MakeHub, part: Part, tiny_hub: TinyHub, repository: str, record: Any
) -> None:
    """Two deployments of a host begin at the same time: the second waits and finds all files."""
    waiting, states = threading.Event(), []

    class Second(type(record)):  # type: ignore[misc]
        def note(self, line: str) -> None:
            waiting.set()

    def second() -> None:
        states.append(pull(make_hub(), part, Second()).state)

    thread = threading.Thread(target=second)

    def before(name: str) -> None:
        if name == WEIGHTS and not thread.ident:
            thread.start()
            assert waiting.wait(20)

    tiny_hub.before_file = before
    states.append(pull(make_hub(), part, record).state)
    thread.join(20)
    assert sorted(states) == ["present", "pulled"]
    assert len(tiny_hub.downloads()) == len(set(tiny_hub.downloads()))


def test_files_that_were_not_pulled_are_left_alone(
    make_hub: MakeHub, part: Part, record: Any, repository: str
) -> None:
    """A setting may name a folder with somebody's own checkpoint."""
    part.folder.mkdir(parents=True)
    (part.folder / "mine.safetensors").write_bytes(b"mine")
    with pytest.raises(HubError, match="has files that were not pulled"):
        pull(make_hub(), part, record)
    assert (part.folder / "mine.safetensors").read_bytes() == b"mine"
    with pytest.raises(HubError, match="is the name of a file"):
        pull(make_hub(), replace(part, folder=part.folder / "mine.safetensors"), record)


def test_a_damaged_pulled_folder_is_repaired(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """Only the damaged file is downloaded."""
    pull(make_hub(), part, record)
    tiny_hub.requests.clear()
    (part.folder / WEIGHTS).write_bytes(b"cut")
    assert pull(make_hub(), part, record).state == "pulled"
    assert [name for name in tiny_hub.downloads() if name.endswith(".safetensors")] == [WEIGHTS]
    assert content(part.folder)[WEIGHTS] == (tiny_hub.files(repository, "main") or {})[WEIGHTS]


def test_equal_files_of_another_checkpoint_are_linked(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """Two checkpoints of Wan may have the same text encoder of 11 GB; files that changed are not taken."""
    pull(make_hub(), part, record)
    vae = part.folder / "vae/diffusion_pytorch_model.fp16.safetensors"
    vae.write_bytes(bytes(vae.stat().st_size))
    tiny_hub.requests.clear()
    other = replace(part, folder=part.folder.with_name("other"))
    pull(make_hub(), other, record, others=[part.folder])
    weights = [name for name in tiny_hub.downloads() if name.endswith(".safetensors")]
    assert weights == ["vae/diffusion_pytorch_model.fp16.safetensors"]
    assert (other.folder / WEIGHTS).samefile(part.folder / WEIGHTS)


def test_too_small_a_disk_is_noticed_before_the_download(
    make_hub: MakeHub,
    part: Part,
    record: Any,
    tiny_hub: TinyHub,
    repository: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line says how much is missing, and where."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1000))
    with pytest.raises(HubError, match=r"sdxl needs 0.0 GB more and 1 GB to spare, and 0.0 GB are free"):
        pull(make_hub(), part, record)
    assert tiny_hub.downloads() == []


def test_a_disk_that_fills_keeps_what_has_arrived(
    make_hub: MakeHub,
    part: Part,
    record: Any,
    tiny_hub: TinyHub,
    repository: str,
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others write to it too, after it was measured."""
    disk = small_disk(2)
    here = replace(part, folder=disk / "sdxl")
    monkeypatch.setattr(pull_module, "MIN_FREE_BYTES", -(1 << 30))
    with pytest.raises(HubError, match=r"No space left on device.*free space, and pull again"):
        pull(make_hub(), here, record)
    assert staged_bytes(here.folder) > 1 << 20
    assert not here.folder.exists()


def test_a_folder_in_use_is_not_replaced(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """A worker that loads its files one after the other would mix two revisions."""
    pull(make_hub(), part, record)
    files = tiny_hub.files(repository, "main") or {}
    tiny_hub.add(repository, {**files, "unet/config.json": b'{"v": 2}'})
    code = f"""
import sys; from pathlib import Path; from ourvidz.hub.manifest import mark_in_use
mark_in_use(Path({str(part.folder / "unet/config.json")!r})); print("loaded", flush=True); sys.stdin.read()"""
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(PYTHONPATH=str(ROOT)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert worker.stdout
    assert worker.stdout.readline() == b"loaded\n"
    with pytest.raises(HubError, match="is used by a running worker: stop it first"):
        pull(make_hub(), part, record, update=True)
    worker.communicate()
    assert pull(make_hub(), part, record, update=True).state == "pulled"
    mark_in_use(Path(os.devnull))


class Killed(BaseException):
    """Ends a pull as SIGKILL does: nothing catches it."""


@pytest.mark.parametrize("steps", [1, 2])
def test_a_pull_that_is_killed_while_it_replaces_another_is_completed_by_the_next(
    make_hub: MakeHub,
    part: Part,
    record: Any,
    tiny_hub: TinyHub,
    repository: str,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    """After the old folder is moved away, or before it is deleted: a worker that starts then finds no
    checkpoint, or a second one lies on the disk for ever."""
    pull(make_hub(), part, record)
    old = part.folder.with_name(f"{part.folder.name}.old")
    old.mkdir()
    files = tiny_hub.files(repository, "main") or {}
    tiny_hub.add(repository, {**files, "unet/config.json": b'{"v": 2}'}, branch="v2")
    new = replace(part, revision="v2")
    left = [steps]
    rename, remove = Path.rename, shutil.rmtree

    def step(act: Callable[..., Any], path: Path, *arguments: Any, **options: Any) -> Any:
        if not path.exists() or not path.is_dir():
            return None
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return act(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *arguments: step(rename, *arguments))
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: step(remove, *arguments, **options))
        with pytest.raises(Killed):
            pull(make_hub(), new, record)
    tiny_hub.requests.clear()
    assert pull(make_hub(), new, record).state == "present"
    assert content(part.folder)["unet/config.json"] == b'{"v": 2}'
    assert tiny_hub.requests == []
    folders = {path.name for path in part.folder.parent.iterdir() if path.is_dir()}
    assert folders == {part.folder.name, old.name}, "a folder of somebody's own stays"


def test_an_earlier_pull_gets_its_name_back_if_the_new_one_is_lost(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """An operator has deleted the partial folder: nothing has to be downloaded again."""
    pull(make_hub(), part, record)
    part.folder.rename(part.folder.with_name(f"{part.folder.name}.replaced"))
    tiny_hub.requests.clear()
    assert pull(make_hub(), part, record).state == "present"
    assert tiny_hub.requests == []


def test_a_symbolic_link_is_followed_and_a_mount_point_refused(
    make_hub: MakeHub,
    part: Part,
    record: Any,
    tiny_hub: TinyHub,
    repository: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Checkpoints have a disk of their own; a folder that cannot be replaced is named before the download."""
    (tmp_path / "disk/sdxl").mkdir(parents=True)
    part.folder.parent.mkdir(parents=True)
    part.folder.symlink_to(tmp_path / "disk/sdxl")
    pull(make_hub(), part, record)
    assert part.folder.is_symlink()
    assert (tmp_path / "disk/sdxl/model_index.json").is_file()
    tiny_hub.requests.clear()
    monkeypatch.setattr(os.path, "ismount", lambda _: True)
    with pytest.raises(HubError, match="is a mount point, which cannot be replaced"):
        pull(make_hub(), part, record, update=True)
    assert tiny_hub.requests == []


def test_a_file_system_without_locks_is_used_without_them(
    make_hub: MakeHub, part: Part, record: Any, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems have none."""

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert pull(make_hub(), part, record).state == "pulled"
    mark_in_use(part.folder)
    assert pull(make_hub(), part, record, update=True).state == "pulled"


@pytest.mark.parametrize(
    "answer",
    [
        {"sha": "../../../outside"},
        {"sha": None},
        {"siblings": []},
        {"siblings": [{"rfilename": "model_index.json", "size": 2, "blobId": "/../../outside"}]},
        {"siblings": [{"rfilename": "model_index.json"}]},
        {"siblings": [{"size": 3}]},
        {"siblings": 3},
    ],
)
def test_a_hub_decides_nothing_about_paths(
    make_hub: MakeHub,
    part: Part,
    record: Any,
    tiny_hub: TinyHub,
    repository: str,
    tmp_path: Path,
    answer: dict[str, Any],
) -> None:
    """Its digests become parts of file names, and a mirror need not be honest."""
    tiny_hub.answer = answer
    with pytest.raises(HubError, match="gives no usable answer"):
        pull(make_hub(), part, record)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_another_commit_than_the_pinned_one_is_refused(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """A pin is worth nothing if a mirror may answer with what it has."""
    pinned = replace(part, revision=tiny_hub.commit(repository))
    assert pull(make_hub(), pinned, record).manifest.commit == pinned.revision
    tiny_hub.answer = {"sha": "0" * 40}
    with pytest.raises(HubError, match=r"answers with commit 000000000000 of meadow/tiny where .* was asked"):
        pull(make_hub(), pinned, record, update=True)


def test_a_licence_that_would_write_to_the_terminal_is_left_out(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str
) -> None:
    """It is shown as the hub sends it."""
    tiny_hub.answer = {"cardData": {"license": "a\x1b[2Jb"}}
    assert pull(make_hub(), part, record).manifest.licence is None


@pytest.mark.parametrize("note", [None, "meadow/tiny old 0123456789abcdef0123456789abcdef01234567"])
def test_complete_files_of_another_commit_are_not_taken_for_those_of_this_one(
    make_hub: MakeHub, part: Part, record: Any, tiny_hub: TinyHub, repository: str, note: str | None
) -> None:
    """Two revisions of a model have files of equal names and sizes: their mix would load, and be neither."""
    content_of = tiny_hub.files(repository, "main") or {}
    staging = staging_folder(part.folder)
    for name in (WEIGHTS, "vae/config.json"):
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_bytes(bytes(len(content_of[name])))
    if note is not None:
        (staging / "pulling.txt").write_text(note)
    pull(make_hub(), part, record)
    assert content(part.folder)[WEIGHTS] == content_of[WEIGHTS]
    assert content(part.folder)["vae/config.json"] == content_of["vae/config.json"]
