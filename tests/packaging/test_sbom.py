"""`scripts/sbom`: the software bills of materials of the images."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

import ourvidz
from tests.packaging.conftest import ROOT
from tests.packaging.test_locks import pins

pytestmark = pytest.mark.system


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
