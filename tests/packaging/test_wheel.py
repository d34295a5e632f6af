"""The contents of the built package: code, scripts, data and trained checkpoints."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

import ourvidz
from ourvidz.pipelines.checksums import verify
from tests.packaging.conftest import PACKAGE, ROOT, SCRIPTS, STAND_IN, metadata_of


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


def test_two_builds_of_a_commit_are_equal_byte_by_byte(source_tree: Path, checkout: Path) -> None:
    """A release that is built again, at another time and as another user, can be compared with this one."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed: no commit can be built")
    shutil.copytree(source_tree, checkout, dirs_exist_ok=True)
    author = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for command in (("init", "-q"), ("add", "pyproject.toml", "README.md", "ourvidz", *SCRIPTS),
                    (*author, "commit", "-q", "-m", "a release")):  # fmt: skip
        subprocess.run(("git", *command), cwd=checkout, check=True)
    (checkout / "ourvidz/uncommitted.py").touch()
    printed = []
    for number, (umask, zone) in enumerate(((0o022, "UTC"), (0o077, "Asia/Tokyo"))):
        run = subprocess.run(
            [checkout / "scripts/build", checkout / f"dist{number}"],
            env=os.environ | {"TZ": zone}, umask=umask, capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        printed.append(run.stdout)
    assert printed[0] == printed[1]
    (wheel,) = (checkout / "dist0").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "ourvidz/uncommitted.py" not in archive.namelist()
        assert "ourvidz/cli/main.py" in archive.namelist()


def test_the_package_has_one_version_number(wheel: Path) -> None:
    """The metadata, the file names, the changelog and `ourvidz.__version__` agree."""
    assert metadata_of(wheel).version == ourvidz.__version__
    assert wheel.name == f"ourvidz-{ourvidz.__version__}-py3-none-any.whl"
    assert (ROOT / "CHANGELOG.md").read_text().splitlines()[2].startswith(f"## {ourvidz.__version__}")
    assert 'version = "' not in (ROOT / "pyproject.toml").read_text().partition("[tool")[0]
