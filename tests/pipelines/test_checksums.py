"""`SHA256SUMS`: a checkpoint with changed, missing or additional files is refused."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path
from shutil import copytree, which

import pytest

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.checksums import CHECKSUMS, sha256_of, verify
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.texts.checkpoint import find_qwen
from tests.factories import image_job
from tests.pipelines.helpers import no_progress

FILES = {"model_index.json": b"{}", "unet/weights.safetensors": b"\0" * 64, "unet/config.json": b"[1]"}


def write_checksums(folder: Path) -> Path:
    """Write the list of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    (folder / CHECKSUMS).write_text(
        "".join(f"{sha256_of(path)}  {path.relative_to(folder)}\n" for path in files)
    )
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder that matches its list."""
    checkpoint = tmp_path / "checkpoint"
    for name, content in FILES.items():
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(content)
    return write_checksums(checkpoint)


def test_a_complete_folder_passes(folder: Path) -> None:
    """A published checkpoint is never refused."""
    verify(folder)


def test_a_folder_without_a_list_is_not_checked(folder: Path) -> None:
    """Most checkpoints have none."""
    (folder / CHECKSUMS).unlink()
    (folder / "unet" / "config.json").write_text("anything")
    verify(folder)


@pytest.mark.skipif(which("sha256sum") is None, reason="sha256sum is not installed")
def test_the_list_has_the_format_of_sha256sum(folder: Path) -> None:
    """The standard tool can check and write it."""
    written = subprocess.run(
        ["sha256sum", *sorted(FILES)], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    assert written == (folder / CHECKSUMS).read_text()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    """An incomplete copy must not look like a bad model."""
    (folder / name).unlink()
    with pytest.raises(ModelLoadError, match=rf"{name} is missing"):
        verify(folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_with_one_changed_bit_is_named(folder: Path, name: str) -> None:
    """Weights with a bit error can be loaded, and every image is wrong."""
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=rf"{name} is not the file .* it has changed"):
        verify(folder)


@pytest.mark.parametrize("name", ["extra.json", "unet/other.safetensors", "unet/.hidden", "new/deep/file"])
def test_a_file_that_is_not_listed_is_named(folder: Path, name: str) -> None:
    """Loaders select files by name, so an additional file could be loaded."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(ModelLoadError, match=rf"{name} is not listed"):
        verify(folder)


def test_an_empty_list_refuses_every_file(folder: Path) -> None:
    """A truncated list must not let everything pass."""
    (folder / CHECKSUMS).write_text("")
    with pytest.raises(ModelLoadError, match="is not listed"):
        verify(folder)


@pytest.mark.parametrize("name", ["../secret", "unet/../../secret", "{absolute}"])
def test_a_name_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    """A downloaded list must not cause other files to be read, not even with the right digest."""
    secret = folder.parent / "secret"
    secret.write_bytes(b"outside")
    with (folder / CHECKSUMS).open("a") as sums:
        sums.write(f"{sha256_of(secret)}  {name.format(absolute=secret)}\n")
    with pytest.raises(ModelLoadError, match="lies outside the folder"):
        verify(folder)


def test_a_link_to_a_folder_is_not_followed(folder: Path) -> None:
    """Its target is not part of the checkpoint."""
    (folder / "unet").rename(folder.parent / "elsewhere")
    (folder / "unet").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(ModelLoadError, match=r"unet/config\.json is missing"):
        verify(folder)


@pytest.mark.parametrize(
    "line", ["", "no digest  file", "a" * 63 + "  file", "A" * 64 + "  file", "a" * 64 + " file", "a" * 64]
)
def test_the_error_names_the_number_of_a_malformed_line(folder: Path, line: str) -> None:
    """Skipping the line would leave a file unchecked."""
    (folder / CHECKSUMS).write_text(f"{(folder / CHECKSUMS).read_text()}{line}\n")
    with pytest.raises(ModelLoadError, match=rf"{CHECKSUMS}, line 4"):
        verify(folder)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0"])
def test_a_binary_list_is_a_load_error(folder: Path, content: bytes) -> None:
    """The message names the folder; it is not a UnicodeDecodeError."""
    (folder / CHECKSUMS).write_bytes(content)
    with pytest.raises(ModelLoadError, match=str(folder)):
        verify(folder)


def test_checking_takes_little_longer_than_hashing(tmp_path: Path) -> None:
    """A worker's start waits for it. Measured in processor time, relative to this machine's hashing speed."""
    (tmp_path / "weights.safetensors").write_bytes(b"\0" * (40 << 20))
    write_checksums(tmp_path)
    started = time.process_time()
    verify(tmp_path)
    assert time.process_time() - started < 0.2 * max(1.0, hashing_s() / 0.1)


def hashing_s() -> float:
    """Processor time (seconds) for hashing 40 MiB."""
    data = bytes(40 << 20)
    started = time.process_time()
    hashlib.sha256(data).hexdigest()
    return time.process_time() - started


# -- use in the pipelines


def test_a_changed_checkpoint_is_refused_before_its_weights_are_read(
    sdxl_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The error names the changed file instead of repeating the library's error."""
    copied = write_checksums(copytree(sdxl_checkpoint.path, tmp_path / "copied"))
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelLoadError, match=r"unet/diffusion_pytorch_model\.safetensors is not the file"):
        SDXLPipeline(Checkpoint(copied, "folder")).load()


def test_a_checked_checkpoint_can_be_loaded_and_checked_again(
    sdxl_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Loading does not write files to the folder."""
    copied = write_checksums(copytree(sdxl_checkpoint.path, tmp_path / "copied"))
    sdxl = SDXLPipeline(Checkpoint(copied, "folder"))
    assert sdxl.generate(image_job(), on_step=no_progress).images
    verify(copied)


def test_one_list_covers_both_qwen_variants(tmp_path: Path) -> None:
    """It is in the folder above them."""
    for variant in ("instruct", "base"):
        (tmp_path / "tiny-qwen" / variant).mkdir(parents=True)
        (tmp_path / "tiny-qwen" / variant / "config.json").write_text("{}")
    write_checksums(tmp_path / "tiny-qwen")
    instruct = find_qwen(None, "instruct", packaged=tmp_path)
    verify(instruct.root)
    (instruct.path / "config.json").write_text("[]")
    with pytest.raises(ModelLoadError, match=r"instruct/config\.json is not the file"):
        verify(instruct.root)
