"""Identity of weights: equal content has equal hashes, whatever its place."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from ourvidz.pipelines import identity
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a checkpoint without checksums: a config, and weights larger than what is sampled."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(bytes(3 * identity.BLOCKS * identity.BLOCK_BYTES))
    return folder


def test_a_listed_checkpoint_has_the_hash_of_its_list() -> None:
    """Its files were verified when it was loaded, so they are not read again."""
    checkpoint = Checkpoint(PACKAGED / "tiny-sdxl", "tiny")
    assert identity.checkpoint_hash(checkpoint).startswith("sha256:")
    assert identity.checkpoint_hash(checkpoint) == identity.checkpoint_hash(checkpoint)


def test_a_checkpoint_of_a_collection_is_found_in_its_list() -> None:
    """The two variants of the packaged language model have one list."""
    root = PACKAGED / "tiny-qwen"
    hashes = {
        identity.checkpoint_hash(Checkpoint(root / variant, "folder", collection=root))
        for variant in ("instruct", "base")
    }
    assert len(hashes) == 2
    assert all(one.startswith("sha256:") for one in hashes)


def test_a_copy_elsewhere_has_the_same_hash(folder: Path, tmp_path: Path) -> None:
    """A receipt is compared on another host."""
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "lock").write_text("")
    hashes = {identity.checkpoint_hash(Checkpoint(path, "folder")) for path in (folder, copy)}
    [one] = hashes
    assert one.startswith("sampled:")


@pytest.mark.parametrize("position", [0, -1])
def test_changed_weights_have_another_hash(folder: Path, position: int) -> None:
    """At the beginning, where the names of the weights are, and at the end."""
    before = identity.checkpoint_hash(Checkpoint(folder, "folder"))
    file = folder / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[position] = 1
    file.write_bytes(content)
    assert identity.checkpoint_hash(Checkpoint(folder, "folder")) != before


def test_a_single_file_has_the_hash_of_file_and_configs(folder: Path) -> None:
    """Another tokenizer makes other embeddings."""
    configs = folder.parent / "model.config"
    configs.mkdir()
    (configs / "model_index.json").write_text("{}")
    checkpoint = Checkpoint(folder / "weights.safetensors", "single file", configs)
    before = identity.checkpoint_hash(checkpoint)
    (configs / "model_index.json").write_text('{"a": 1}')
    assert identity.checkpoint_hash(checkpoint) != before


def test_a_change_between_the_samples_is_seen_by_its_time(folder: Path) -> None:
    """On one host the state of the files counts too: a cache must not survive any change."""
    checkpoint, file = Checkpoint(folder, "folder"), folder / "weights.safetensors"
    before = identity.loaded_weights(checkpoint).name
    state = file.stat()
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert identity.loaded_weights(checkpoint).name != before


def test_lora_files_are_part_of_the_loaded_weights(folder: Path) -> None:
    """By content and by how they are used."""
    checkpoint, file = Checkpoint(folder, "folder"), folder.parent / "lora.safetensors"
    file.write_bytes(b"one")
    names = {identity.loaded_weights(checkpoint, {label: file}).name for label in ("hills@1", "hills@0.5")}
    file.write_bytes(b"two")
    names |= {identity.loaded_weights(checkpoint, added).name for added in ({}, {"hills@1": file})}
    assert len(names) == 4


def test_a_small_file_is_hashed_as_a_whole(tmp_path: Path) -> None:
    """Configs and tokenizers are never sampled."""
    file = tmp_path / "config.json"
    file.write_bytes(b"abc")
    assert identity.file_hash(file) == hashlib.sha256(b"3\nabc").hexdigest()
