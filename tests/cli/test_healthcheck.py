"""`ourvidz healthcheck`: beats on real files, and HTTP."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ourvidz.cli.main import cli
from ourvidz.liveness.beats import Beat
from ourvidz.settings import settings
from ourvidz.testing import CallbackRecorder


@pytest.fixture
def beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the process beats."""
    monkeypatch.setenv("OURVIDZ_BEATS_DIR", str(tmp_path))
    return tmp_path


def check(*options: str) -> Result:
    settings.cache_clear()
    try:
        return CliRunner().invoke(cli, ["healthcheck", *options])
    finally:
        settings.cache_clear()


def test_a_process_is_healthy_while_all_its_parts_beat(beats: Path) -> None:
    """One part that hangs makes the process useless, however lively the others are."""
    for part in ("event-loop", "duty-sweep"):
        Beat(beats, part)()
    assert check().exit_code == 0
    long_ago = time.time() - 90
    os.utime(beats / "duty-sweep", (long_ago, long_ago))
    result = check()
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: duty-sweep has shown no sign of life for 90 s")
    assert check("--silent", "180").exit_code == 0


@pytest.mark.usefixtures("beats")
def test_a_process_that_has_not_shown_itself_is_not_healthy() -> None:
    """A container whose folder cannot be written must not look healthy for ever."""
    assert check().exit_code == 1


def test_without_a_folder_the_check_says_what_is_missing() -> None:
    """Rather than to report a health that it cannot know."""
    result = check()
    assert (result.exit_code, "OURVIDZ_BEATS_DIR" in result.stderr) == (2, True)


def test_a_url_is_healthy_if_it_answers_without_an_error(ourvidz_callbacks: CallbackRecorder) -> None:
    """For processes that do not beat, such as Flower."""
    closed = "http://127.0.0.1:1/"
    assert "answers 501" in check("--url", ourvidz_callbacks.url).stderr
    assert check("--url", closed).exit_code == 1
