"""`SHA256SUMS`: a checkpoint that is not what was published is never used."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, which

import pytest

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.checksums import CHECKSUMS, sha256_of, verify
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.texts.checkpoint import find_qwen

FILES = {"model_index.json": b"{}", "unet/weights.safetensors": b"\0" * 64, "unet/config.json": b"[1]"}


def seal(folder: Path) -> Path:
    """Write the list of every file there is."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    (folder / CHECKSUMS).write_text(
        "".join(f"{sha256_of(path)}  {path.relative_to(folder)}\n" for path in files)
    )
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder that is what its list says."""
    made = tmp_path / "checkpoint"
    for name, content in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    return seal(made)


def test_a_whole_folder_passes(folder: Path) -> None:
    """Checking must never refuse what was published."""
    verify(folder)


def test_a_folder_without_a_list_is_taken_as_it_is(folder: Path) -> None:
    """Most checkpoints come without one."""
    (folder / CHECKSUMS).unlink()
    (folder / "unet" / "config.json").write_text("anything")
    verify(folder)


@pytest.mark.skipif(which("sha256sum") is None, reason="sha256sum is not installed")
def test_the_list_is_sha256sum_s(folder: Path) -> None:
    """Anyone can check a checkpoint with the tool every system has, and it can write the list."""
    written = subprocess.run(
        ["sha256sum", *sorted(FILES)], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    assert written == (folder / CHECKSUMS).read_text()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    """A copy that left a file out must not look like a model that is bad."""
    (folder / name).unlink()
    with pytest.raises(ModelLoadError, match=rf"{name} is missing"):
        verify(folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_one_changed_bit_is_named(folder: Path, name: str) -> None:
    """A weight that flipped on a disk still loads, and every picture is wrong."""
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=rf"{name} is not the file .* it has changed"):
        verify(folder)


@pytest.mark.parametrize("name", ["extra.json", "unet/other.safetensors", "unet/.hidden", "new/deep/file"])
def test_a_file_that_is_not_listed_is_named(folder: Path, name: str) -> None:
    """Loaders pick up files by their names: one that was put in beside the others could be picked."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(ModelLoadError, match=rf"{name} is not listed"):
        verify(folder)


def test_an_empty_list_lists_nothing(folder: Path) -> None:
    """A list that broke off while it was copied must not pass everything."""
    (folder / CHECKSUMS).write_text("")
    with pytest.raises(ModelLoadError, match="is not listed"):
        verify(folder)


@pytest.mark.parametrize("name", ["../secret", "unet/../../secret", "{absolute}"])
def test_a_list_never_leads_out_of_its_folder(folder: Path, name: str) -> None:
    """A list that came with a download must not have other files read, not even with the right digest."""
    secret = folder.parent / "secret"
    secret.write_bytes(b"outside")
    with (folder / CHECKSUMS).open("a") as sums:
        sums.write(f"{sha256_of(secret)}  {name.format(absolute=secret)}\n")
    with pytest.raises(ModelLoadError, match="lies outside the folder"):
        verify(folder)


def test_a_folder_that_is_a_link_is_not_followed(folder: Path) -> None:
    """What lies behind it belongs to somebody else, and changes without this folder."""
    (folder / "unet").rename(folder.parent / "elsewhere")
    (folder / "unet").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(ModelLoadError, match=r"unet/config\.json is missing"):
        verify(folder)


@pytest.mark.parametrize(
    "line", ["", "no digest  file", "a" * 63 + "  file", "A" * 64 + "  file", "a" * 64 + " file", "a" * 64]
)
def test_a_line_that_is_none_is_told_by_its_number(folder: Path, line: str) -> None:
    """Skipping it would leave a file unchecked."""
    (folder / CHECKSUMS).write_text(f"{(folder / CHECKSUMS).read_text()}{line}\n")
    with pytest.raises(ModelLoadError, match=rf"{CHECKSUMS}, line 4"):
        verify(folder)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0"])
def test_a_list_that_is_no_text_is_a_load_error(folder: Path, content: bytes) -> None:
    """An operator reads which folder, not a traceback about a codec."""
    (folder / CHECKSUMS).write_bytes(content)
    with pytest.raises(ModelLoadError, match=str(folder)):
        verify(folder)


def test_forty_megabytes_are_checked_at_once(tmp_path: Path) -> None:
    """A worker's start must not wait for it: a tenth of a second here, with room for a busy machine."""
    (tmp_path / "weights.safetensors").write_bytes(b"\0" * (40 << 20))
    seal(tmp_path)
    # Processor time: other processes on the machine must not decide this.
    started = time.process_time()
    verify(tmp_path)
    assert time.process_time() - started < 0.2 * max(1.0, reference_s() / 0.1)


def reference_s() -> float:
    """What this machine needs for the hashing alone."""
    data = bytes(40 << 20)
    started = time.process_time()
    hashlib.sha256(data).hexdigest()
    return time.process_time() - started


# -- where it is used


def test_a_changed_checkpoint_is_refused_before_its_weights_are_read(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    """The error names the changed file, not whatever the library made of it."""
    copied = seal(copytree(tiny.path, tmp_path / "copied"))
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelLoadError, match=r"unet/diffusion_pytorch_model\.safetensors is not the file"):
        SDXLPipeline(Checkpoint(copied, "folder")).load()


def test_a_checked_checkpoint_loads(
    tiny: Checkpoint, tmp_path: Path, image_job: Callable[..., ImageJob]
) -> None:
    """Loading leaves nothing in the folder that the next check would find."""
    copied = seal(copytree(tiny.path, tmp_path / "copied"))
    sdxl = SDXLPipeline(Checkpoint(copied, "folder"))
    assert sdxl.generate(image_job(), on_step=lambda *_: None).images
    verify(copied)


def test_both_qwen_variants_stand_under_one_list(tmp_path: Path) -> None:
    """The list lies above them; each variant is checked with it."""
    for variant in ("instruct", "base"):
        (tmp_path / "tiny-qwen" / variant).mkdir(parents=True)
        (tmp_path / "tiny-qwen" / variant / "config.json").write_text("{}")
    seal(tmp_path / "tiny-qwen")
    instruct = find_qwen(None, "instruct", packaged=tmp_path)
    verify(instruct.root)
    (instruct.path / "config.json").write_text("[]")
    with pytest.raises(ModelLoadError, match=r"instruct/config\.json is not the file"):
        verify(instruct.root)
