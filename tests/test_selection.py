"""Selecting tests by their marks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.properties import examples
from tests.selection import SLOW_FILES, TESTS, spread

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
    """`scripts/test --fast` uses the expression and the profile that are tested here."""
    script = (ROOT / "scripts/test").read_text()
    assert f'-m "{FAST}"' in script
    assert "--hypothesis-profile fast" in script


def test_slow_files_do_not_start_last() -> None:
    """The other processes would wait for the last one."""
    files = [Path(str(number)) for number in range(20)]
    ordered = spread(files, {Path("17"), Path("18"), Path("19")})
    assert [ordered.index(Path(name)) for name in ("17", "18", "19")] == [0, 5, 9]
    assert [path for path in ordered if int(path.name) < 17] == files[:17]


def test_every_slow_file_exists() -> None:
    """A file that is renamed would start anywhere."""
    assert [name for name in SLOW_FILES if not (TESTS / name).is_file()] == []


@pytest.mark.parametrize(
    ("profile", "tried", "same"), [("default", 50, True), ("fast", 10, True), ("long", 1000, False)]
)
def test_a_profile_sets_the_number_of_examples_of_every_property(
    profile: str, tried: int, same: bool
) -> None:
    """The long form must find what the same examples in every run would not."""
    before = settings.get_current_profile_name()
    settings.load_profile(profile)
    try:
        property_settings = examples(50, repeatable=True)
    finally:
        settings.load_profile(before)
    assert (property_settings.max_examples, property_settings.derandomize) == (tried, same)
