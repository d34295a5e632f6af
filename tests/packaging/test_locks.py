"""The lock files of the images: complete, and with the versions of `constraints.txt`."""

from __future__ import annotations

import re
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from campaigns.images import dockerfile, stages
from tests.packaging.conftest import ROOT, required

IMAGES = ROOT / "deploy/images"
LOCKS = ("build.txt", "control/requirements.txt", "worker/requirements.txt")
EXTRAS = {"control": ("control", "s3"), "worker": ("worker", "s3", "single-file", "c2pa")}
"""The extras of each image, as in scripts/lock."""
STALE = "run scripts/lock"
ONLY_WITH_CUDA = re.compile(r"nvidia-.*|cuda-.*|triton")
"""What torch requires in the build for GPUs; the tests run with its CPU build."""


def pins(path: Path) -> dict[str, str]:
    """Name → version in a file of requirements."""
    found = re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


@pytest.mark.parametrize("lock", LOCKS)
def test_the_versions_of_a_lock_are_those_that_the_tests_ran_with(lock: str) -> None:
    """`constraints.txt` is the only place in which versions are chosen."""
    constraints = pins(ROOT / "constraints.txt")
    locked = pins(IMAGES / lock)
    assert locked
    assert {name: version for name, version in locked.items() if constraints.get(name) != version} == {}, (
        STALE
    )


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_a_lock_has_hashes_and_no_address(lock: str) -> None:
    """pip refuses requirements in which one has no hash; where they come from is the choice of a host."""
    lines = [line for line in (IMAGES / lock).read_text().splitlines() if not line.startswith("#")]
    entries = [entry for entry in re.split(r"\n(?=\S)", "\n".join(lines)) if entry.strip()]
    hashed = re.compile(r"[\w.-]+==[\w.]+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+")
    assert [entry for entry in entries if not hashed.fullmatch(entry.strip())] == []
    assert "://" not in "".join(lines)
    assert len(entries) == len(pins(IMAGES / lock))


@pytest.mark.parametrize("image", EXTRAS)
def test_a_lock_has_what_the_image_requires_and_nothing_else(image: str, project: Distribution) -> None:
    """A requirement that is added to pyproject.toml is missing in the image until the lock is written."""
    (python,) = re.findall(r"^python:([\d.]+)", stages(dockerfile(image))[0].base)
    markers = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    needed = {name for extra in EXTRAS[image] for name in required(project, extra, **markers)}
    locked = pins(IMAGES / image / "requirements.txt").keys()
    assert needed - locked == set(), STALE
    surplus = {name for name in locked - needed if not ONLY_WITH_CUDA.fullmatch(name)}
    assert surplus == set(), STALE
    script = (ROOT / "scripts/lock").read_text()
    options = " ".join(f"--extra {extra}" for extra in EXTRAS[image])
    assert f"lock deploy/images/{image}/requirements.txt {options} pyproject.toml" in script


def test_the_locks_are_for_the_python_of_the_images() -> None:
    """The hashes of wheels for another version would be refused when the image is built."""
    (version,) = {re.match(r"python:(3\.\d+)", stages(dockerfile(image))[0].base)[1] for image in EXTRAS}
    for lock in LOCKS:
        assert f"for Python {version} on Linux" in (IMAGES / lock).read_text().splitlines()[0]
