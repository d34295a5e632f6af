"""`scripts/lock` and `scripts/audit`, with stand-ins for the programs that need a network."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

LOCKS = ["build.txt", "control/requirements.txt", "worker/requirements.txt"]


def stand_in(checkout: Path, name: str, script: str) -> None:
    """Write a program of the environment."""
    program = checkout / ".venv/bin" / name
    program.write_text(f"#!/bin/bash\n{script}")
    program.chmod(0o755)


def run(checkout: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the checkout."""
    return subprocess.run(
        [checkout / "scripts" / script, *arguments], capture_output=True, text=True, timeout=60
    )


def test_an_audit_looks_at_every_lock_and_fails_if_one_of_them_fails(checkout: Path) -> None:
    """Also if a package cannot be looked up: pip-audit does not fail without `--strict`."""
    stand_in(checkout, "pip-audit", 'echo "$@"; [[ "$*" != *control* ]]\n')
    audit = run(checkout, "audit", "--format", "json")
    assert audit.returncode == 1
    lines = audit.stdout.splitlines()
    assert [line.split()[1] for line in lines] == [f"deploy/images/{lock}" for lock in LOCKS]
    assert all("--strict" in line.split() and line.endswith("--format json") for line in lines)
    stand_in(checkout, "pip-audit", "exit 0\n")
    assert run(checkout, "audit").returncode == 0


@pytest.mark.skipif(
    (sys.version_info[:2], platform.system(), platform.machine()) != ((3, 11), "Linux", "x86_64"),
    reason="lock files are written with the Python of the images",
)
@pytest.mark.parametrize("foreign", ["torch==2.13.0+cpu", "ourvidz @ file:///srv/ourvidz"])
def test_a_lock_with_what_no_index_has_is_not_written(checkout: Path, foreign: str) -> None:
    """Such as the wheels of this machine, which pip prefers where its configuration names them."""
    write = 'while [ "$1" != --output-file ]; do shift; done; cat "$(dirname "$0")/answer" > "$2"\n'
    stand_in(checkout, "pip-compile", write)
    answer = checkout / ".venv/bin/answer"
    before = [(checkout / "deploy/images" / lock).read_bytes() for lock in LOCKS]
    answer.write_text(f"{foreign} \\\n    --hash=sha256:{'0' * 64}\n")
    refused = run(checkout, "lock")
    assert refused.returncode == 1
    assert foreign in refused.stderr
    assert [(checkout / "deploy/images" / lock).read_bytes() for lock in LOCKS] == before
    answer.write_text(f"torch==2.13.0 \\\n    --hash=sha256:{'0' * 64}\n")
    assert run(checkout, "lock").returncode == 0
    for lock in LOCKS:
        head, *rest = (checkout / "deploy/images" / lock).read_text().splitlines(keepends=True)
        assert head == "# Written by scripts/lock, for Python 3.11 on Linux x86-64: do not edit.\n"
        assert "".join(rest) == answer.read_text()
    assert not list((checkout / "deploy").rglob("*.new"))
