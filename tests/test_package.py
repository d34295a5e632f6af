"""The contents of the built package: code, scripts, data and trained checkpoints."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

import ourvidz
from ourvidz.pipelines.checksums import verify

PACKAGE = Path(ourvidz.__file__).parent
ROOT = PACKAGE.parent
STAND_IN = {
    "tiny-sdxl/README.md": b"# a card",
    "tiny-sdxl/model_index.json": b"{}",
    "tiny-sdxl/tokenizer/merges.txt": b"a b",
    "tiny-sdxl/unet/diffusion_pytorch_model.safetensors": bytes(range(256)) * 64,
    "tiny-qwen/instruct/chat_template.jinja": b"{{ messages }}",
    "tiny-qwen/base/model.safetensors": b"weights",
    "tiny-wan/tokenizer/spiece.model": b"pieces",
}
SCRIPTS = ("celeryconfig.py", "wan_generate.py")
"""Modules beside the package, which Celery and users import or run by name."""
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, tree: Path, into: Path) -> Path:
    """Build an sdist or a wheel through the hook of the build backend, without build isolation."""
    run = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", str(into)],
        cwd=tree, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return into / run.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the source distribution of a tree with stand-in checkpoints."""
    folder = tmp_path_factory.mktemp("package")
    tree = folder / "tree"
    copytree(PACKAGE, tree / "ourvidz", ignore=ignore_patterns("__pycache__", "checkpoints"))
    for name in ("pyproject.toml", "README.md", *SCRIPTS):
        copy(ROOT / name, tree)
    for name, content in STAND_IN.items():
        path = tree / "ourvidz" / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        with (tree / "ourvidz" / "checkpoints" / name.split("/")[0] / "SHA256SUMS").open("a") as sums:
            sums.write(f"{hashlib.sha256(content).hexdigest()}  {name.partition('/')[2]}\n")
    with tarfile.open(build("sdist", tree, folder)) as source:
        source.extractall(folder / "source", filter="data")
    (unpacked,) = (folder / "source").iterdir()
    return build("wheel", unpacked, folder)


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
