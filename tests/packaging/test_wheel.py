"""The contents of the built package: code, scripts, data and trained checkpoints."""

from __future__ import annotations

import zipfile
from pathlib import Path

import ourvidz
from ourvidz.pipelines.checksums import verify
from tests.packaging.conftest import PACKAGE, ROOT, SCRIPTS, STAND_IN, metadata_of, run_hook


def test_the_wheel_contains_the_complete_checkpoints(wheel: Path, tmp_path: Path) -> None:
    """The installed files match their checksums."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    checkpoints = tmp_path / "ourvidz" / "checkpoints"
    assert {name: (checkpoints / name).read_bytes() for name in STAND_IN} == STAND_IN
    for family in ("tiny-sdxl", "tiny-wan", "tiny-qwen"):
        verify(checkpoints / family)


def test_the_wheel_contains_every_file_of_the_package(wheel: Path) -> None:
    """Lua scripts, term lists and `py.typed` are read from the installed package."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package_files = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "checkpoints" not in path.parts
    }
    assert {*package_files, *SCRIPTS} - names == set()


def test_the_packaged_checkpoints_have_checksums_and_cards() -> None:
    """A release contains no weights without a model card or with other checksums."""
    folders = sorted((PACKAGE / "checkpoints").glob("tiny-*"))
    assert [folder.name for folder in folders] == ["tiny-qwen", "tiny-sdxl", "tiny-wan"]
    assert sum(file.stat().st_size for folder in folders for file in folder.rglob("*")) <= 40_000_000
    for folder in folders:
        assert (folder / "SHA256SUMS").is_file()
        assert (folder / "README.md").is_file()
        verify(folder)


def test_two_builds_are_equal_byte_by_byte(source_tree: Path, wheel: Path, tmp_path: Path) -> None:
    """Whoever builds a release again, from another folder and at another time, can compare it with the
    published one."""
    again = run_hook("build_wheel", source_tree, tmp_path)
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_the_package_has_one_version_number(wheel: Path) -> None:
    """The metadata, the file names and `ourvidz.__version__` agree: only the last one is written."""
    assert metadata_of(wheel).version == ourvidz.__version__
    assert wheel.name == f"ourvidz-{ourvidz.__version__}-py3-none-any.whl"
    assert 'version = "' not in (ROOT / "pyproject.toml").read_text().partition("[tool")[0]
