"""The contents of the built package: code, scripts, data and trained checkpoints."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

import ourvidz
from ourvidz.pipelines.checksums import verify
from tests.packaging.conftest import PACKAGE, RELEASED_AT, ROOT, SCRIPTS, STAND_IN, metadata_of

pytestmark = pytest.mark.system


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


def test_a_build_of_a_commit_is_repeatable(source_tree: Path, checkout: Path, wheel: Path) -> None:
    """A release that is built again, elsewhere and as another user, can be compared with the published one.

    The wheel is equal byte by byte to that of the fixture; the source distribution contains neither the time
    of the build nor its user.
    """
    if shutil.which("git") is None:
        pytest.skip("git is not installed: no commit can be built")
    shutil.copytree(source_tree, checkout, dirs_exist_ok=True)
    env = os.environ | {"TZ": "Asia/Tokyo", "GIT_COMMITTER_DATE": f"{RELEASED_AT} +0000"}
    author = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    for command in (("init", "-q"), ("add", "pyproject.toml", "README.md", "ourvidz", *SCRIPTS),
                    (*author, "commit", "-q", "-m", "a release")):  # fmt: skip
        subprocess.run(("git", *command), cwd=checkout, env=env, check=True)
    (checkout / "ourvidz/uncommitted.py").touch()
    run = subprocess.run(
        [checkout / "scripts/build"], env=env, umask=0o077, capture_output=True, text=True, timeout=90
    )
    assert run.returncode == 0, run.stderr
    built = {path.name: path for path in (checkout / "dist").iterdir()}
    assert [line.split()[1] for line in run.stdout.splitlines()] == sorted(built, reverse=True)
    assert built[wheel.name].read_bytes() == wheel.read_bytes()
    (sdist,) = (path for name, path in built.items() if name != wheel.name)
    assert int.from_bytes(sdist.read_bytes()[4:8], "little") == int(RELEASED_AT)
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert {member.mtime for member in members} == {int(RELEASED_AT)}
    assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {(0, 0, "", "")}
    assert {member.mode for member in members} == {0o644, 0o755}
    assert [member.name for member in members] == sorted(member.name for member in members)


def test_the_package_has_one_version_number(wheel: Path) -> None:
    """The metadata, the file names, the changelog and `ourvidz.__version__` agree."""
    assert metadata_of(wheel).version == ourvidz.__version__
    assert wheel.name == f"ourvidz-{ourvidz.__version__}-py3-none-any.whl"
    assert (ROOT / "CHANGELOG.md").read_text().splitlines()[2].startswith(f"## {ourvidz.__version__}")
    assert 'version = "' not in (ROOT / "pyproject.toml").read_text().partition("[tool")[0]
