"""Selecting tests by their marks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAST = "not system and not model and not training and not browser and not deno"


@pytest.mark.system
@pytest.mark.parametrize(
    ("expression", "collected"), [(FAST, False), ("model", True)], ids=["fast leaves them out", "model"]
)
def test_the_mark_of_a_folder_selects_its_tests(expression: str, collected: bool) -> None:
    """`scripts/test --fast` promises to run no model."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", expression, "tests/contract"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == (pytest.ExitCode.OK if collected else pytest.ExitCode.NO_TESTS_COLLECTED), run


def test_the_script_selects_what_is_documented() -> None:
    """`scripts/test --fast` uses the expression that is tested here."""
    assert f'-m "{FAST}"' in (ROOT / "scripts/test").read_text()
