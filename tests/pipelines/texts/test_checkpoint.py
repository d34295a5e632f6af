"""Qwen checkpoints on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.texts.checkpoint import QwenVariant, find_qwen


@pytest.mark.parametrize("variant", ["instruct", "base"])
@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_variant_is_the_subfolder_of_its_name(
    tmp_path: Path, variant: QwenVariant, has_checksums: bool
) -> None:
    """The checksums of both variants, if there are any, are in the folder above."""
    for collection in (tmp_path / "tiny-qwen", tmp_path / "other"):
        (collection / variant).mkdir(parents=True)
        (collection / variant / "config.json").write_text("{}")
        save_file({"lm_head.weight": torch.zeros(1)}, collection / variant / "model.safetensors")
        if has_checksums:
            (collection / "SHA256SUMS").write_text("")
    tiny = find_qwen(None, variant, packaged=tmp_path)
    other = find_qwen(tmp_path / "other", variant, packaged=tmp_path)
    assert (tiny.path, tiny.kind) == (tmp_path / "tiny-qwen" / variant, "tiny")
    assert (other.path, other.kind) == (tmp_path / "other" / variant, "folder")
    assert tiny.root == (tmp_path / "tiny-qwen" if has_checksums else tiny.path)
    assert tiny.name == (f"tiny-qwen/{variant}" if has_checksums else variant)


def test_the_error_names_the_folder_without_a_checkpoint(tmp_path: Path) -> None:
    """For the packaged checkpoint and for one in the settings."""
    with pytest.raises(ModelLoadError, match=r"tiny-qwen/base has no config\.json"):
        find_qwen(None, "base", packaged=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError, match="empty/instruct has no config"):
        find_qwen(tmp_path / "empty", "instruct", packaged=tmp_path)
