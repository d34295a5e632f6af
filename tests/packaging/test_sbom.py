"""`scripts/sbom`: the software bills of materials of the images."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

import ourvidz
from tests.packaging.conftest import ROOT
from tests.packaging.test_locks import pins


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with an environment in which the script finds everything installed."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("scripts", "deploy/images"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "ourvidz").mkdir()
    shutil.copy(ROOT / "ourvidz/__init__.py", tmp_path / "ourvidz")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    inputs = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    stamp = f"{hashlib.sha256(inputs).hexdigest()}\nrelease\n"
    (tmp_path / ".venv/ourvidz-stamp").write_text(stamp)
    return tmp_path


def test_a_bill_of_materials_names_the_version_and_every_package_with_its_hashes(checkout: Path) -> None:
    """What scanners compare with lists of vulnerabilities."""
    if find_spec("cyclonedx_py") is None:
        pytest.skip("cyclonedx-bom is not installed (pip install 'ourvidz[dev]')")
    command = [checkout / "scripts/sbom", checkout / "dist", "control"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert run.returncode == 0, run.stderr
    file = checkout / "dist" / f"ourvidz-control-{ourvidz.__version__}.cdx.json"
    assert run.stdout == f"{file}\n"
    bill = json.loads(file.read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["version"] == ourvidz.__version__
    found = {canonicalize_name(part["name"]): part for part in bill["components"]}
    locked = pins(ROOT / "deploy/images/control/requirements.txt")
    assert {name: part["version"] for name, part in found.items()} == locked
    assert all(part["externalReferences"][0]["hashes"] for part in found.values())
