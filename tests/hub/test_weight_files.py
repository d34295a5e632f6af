"""Damaged weight files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from ourvidz.hub.weight_files import find_damage


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"<html>", (2).to_bytes(8, "little") + b"[]"])
def test_a_file_of_another_format_is_reported_as_damaged(tmp_path: Path, content: bytes) -> None:
    """Such as an error page saved under the name of a model. No exception is raised."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    damage = find_damage(path)
    assert damage is not None
    assert str(path) in damage


def test_a_truncated_archive_is_damaged(tmp_path: Path) -> None:
    """The .pth files of the Wan release are zip archives of several gigabytes."""
    path = tmp_path / "Wan2.1_VAE.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 1000)
    assert find_damage(path) is None
    path.write_bytes(path.read_bytes()[:500])
    assert find_damage(path) == f"{path} is cut off"
