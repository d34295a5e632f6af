"""The built wheel, and a host on which only what the extra `control` requires is installed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from shutil import copy, copytree, ignore_patterns
from typing import Any
from zipfile import Path as ZipPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ourvidz
from campaigns import images
from ourvidz.settings import environment

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
"""Checkpoints that are built in milliseconds, by path in the folder of the packaged ones."""
SCRIPTS = ("celeryconfig.py", "wan_generate.py")
"""Modules beside the package, which Celery and users import or run by name."""
RELEASED_AT = "1700000000"
"""`SOURCE_DATE_EPOCH` of the builds."""
HOOK = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the scripts and what they read, and an environment in which they find all installed."""
    for name in ("pyproject.toml", "constraints.txt"):
        copy(ROOT / name, tmp_path)
    for name in ("scripts", "deploy/images"):
        copytree(ROOT / name, tmp_path / name)
    (tmp_path / "ourvidz").mkdir()
    copy(PACKAGE / "__init__.py", tmp_path / "ourvidz")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    inputs = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    stamp = f"{hashlib.sha256(inputs).hexdigest()}\nrelease\n"
    (tmp_path / ".venv/ourvidz-stamp").write_text(stamp)
    return tmp_path


def run_hook(hook: str, tree: Path, into: Path) -> Path:
    """Call a hook of the build backend in `tree`, without isolation; returns what it writes into `into`."""
    into.mkdir(exist_ok=True)
    run = subprocess.run(
        [sys.executable, "-c", HOOK, hook, str(into)],
        cwd=tree, env=os.environ | {"SOURCE_DATE_EPOCH": RELEASED_AT},
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return into / run.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a release is built from, with stand-in checkpoints."""
    tree = tmp_path_factory.mktemp("source") / "tree"
    copytree(PACKAGE, tree / "ourvidz", ignore=ignore_patterns("__pycache__", "checkpoints"))
    for name in ("pyproject.toml", "README.md", *SCRIPTS):
        copy(ROOT / name, tree)
    for name, content in STAND_IN.items():
        path = tree / "ourvidz" / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        with (tree / "ourvidz" / "checkpoints" / name.split("/")[0] / "SHA256SUMS").open("a") as sums:
            sums.write(f"{hashlib.sha256(content).hexdigest()}  {name.partition('/')[2]}\n")
    return tree


@pytest.fixture(scope="session")
def wheel(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the source distribution."""
    folder = tmp_path_factory.mktemp("package")
    with tarfile.open(run_hook("build_sdist", source_tree, folder)) as source:
        source.extractall(folder / "source", filter="data")
    (unpacked,) = (folder / "source").iterdir()
    return run_hook("build_wheel", unpacked, folder)


@pytest.fixture(scope="session")
def project(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """The metadata of the wheel, which can be had without building it."""
    folder = tmp_path_factory.mktemp("metadata")
    return PathDistribution(run_hook("prepare_metadata_for_build_wheel", source_tree, folder))


def metadata_of(wheel: Path) -> Distribution:
    """The metadata in a wheel that is not installed."""
    (info,) = (entry for entry in ZipPath(wheel).iterdir() if entry.name.endswith(".dist-info"))
    return PathDistribution(info)


def required(project: Distribution, extra: str, **markers: str) -> dict[str, Distribution]:
    """The installed distributions that a project requires with this extra, and what those require; `markers`
    replace those of this interpreter, such as `python_full_version`."""
    found: dict[str, Distribution] = {}
    waiting: list[tuple[Distribution, str]] = [(project, extra), (project, "")]
    seen = set()
    while waiting:
        parent, asked = waiting.pop()
        if (parent.metadata["Name"], asked) in seen:
            continue
        seen.add((parent.metadata["Name"], asked))
        for line in parent.requires or ():
            need = Requirement(line)
            if need.marker is not None and not need.marker.evaluate({"extra": asked, **markers}):
                continue
            name = canonicalize_name(need.name)
            child = project if name == "ourvidz" else distribution(need.name)
            if child is not project:
                found[name] = child
            waiting += [(child, ""), *((child, one) for one in need.extras)]
    return found


def link(package: Distribution, site: Path) -> None:
    """Make an installed distribution importable from another folder for site packages.

    Folders with an `__init__.py` are linked as a whole; namespace packages, which several distributions
    share, file by file.
    """
    for file in package.files or ():
        if file.parts[0] in ("..", "__pycache__"):
            continue
        source = Path(str(package.locate_file("")))
        part = Path(file.parts[0])
        while (source / part).is_dir() and not part.name.endswith(".dist-info"):
            if (source / part / "__init__.py").exists() or part == Path(*file.parts):
                break
            part = Path(*file.parts[: len(part.parts) + 1])
        target = site / part
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source / part)


def write_programs(package: Distribution, folder: Path) -> None:
    """Write the programs of a linked distribution, as an installer would."""
    for entry in package.entry_points.select(group="console_scripts"):
        program = folder / entry.name
        program.write_text(
            f"#!{folder / 'python'}\nimport sys\nfrom {entry.module} import {entry.attr} as main\n"
            "sys.exit(main())\n"
        )
        program.chmod(0o755)


@dataclass(frozen=True)
class Host:
    """A machine with its own virtual environment. `requires` are the names of what is installed there."""

    folder: Path
    requires: frozenset[str]

    @property
    def prefix(self) -> Path:
        """The virtual environment."""
        return self.folder / "venv"

    def program(self, name: str) -> str:
        """The path of an installed program."""
        return str(self.prefix / "bin" / name)

    def env(self, **variables: str) -> dict[str, str]:
        """The environment of its processes."""
        return environment(OURVIDZ_STATE_DIR=str(self.folder / "state"), **variables)

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs to its end."""
        return subprocess.run(
            [self.program(command[0]), *command[1:]],
            cwd=self.folder, env=self.env(**variables), capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def json(self, *command: str, **variables: str) -> Any:
        """Run a program that succeeds and prints JSON."""
        done = self.run(*command, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def control_host(source_tree: Path, project: Distribution, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host on which the control image is installed.

    Links to what the wheel's metadata requires for `control` replace the first `RUN` of its Dockerfile, which
    downloads the same packages. The second one, which builds and installs the wheel and checks all
    requirements, is executed as it is.
    """
    folder = tmp_path_factory.mktemp("control")
    host = Host(folder, frozenset(needs := required(project, "control")))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", host.prefix], check=True)
    for package in needs.values():
        link(package, next((host.prefix / "lib").iterdir()) / "site-packages")
        write_programs(package, host.prefix / "bin")
    programs = folder / "programs"
    programs.mkdir()
    (programs / "pip").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip --quiet "$@"\n')
    (programs / "pip").chmod(0o755)
    build = images.stages(images.dockerfile("control"))[0]
    images.run_step(build.all("RUN")[1], prefix=host.prefix, source=source_tree, programs=programs)
    return host
