"""The lists for operators at 80 columns: on a terminal, and piped."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ourvidz.cli.console import INDENT
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.settings import environment

pytestmark = pytest.mark.system

ERROR = "the receiver answered with an error page instead of a status that it documents: bad gateway"
PATH = Path("/models/somebody/who/likes/long/names/stable-diffusion-xl-base-1.0-with-a-refiner")
JOB_ID = "8f14e45f-ceea-467a-9575-6b1c3f0f7c11"

Run = Callable[..., str]


def run_piped(*arguments: str, **variables: str) -> str:
    """The output of an `ourvidz` command whose standard output is a pipe."""
    process = subprocess.run(
        command(arguments), env=environment(COLUMNS="80", **variables), capture_output=True, text=True
    )
    assert process.returncode in (0, 1), process.stderr
    return process.stdout


def run_on_terminal(*arguments: str, **variables: str) -> str:
    """The output of an `ourvidz` command on a pseudo-terminal, without its colours."""
    ours, theirs = pty.openpty()
    env = environment(COLUMNS="80", TERM="xterm-256color", **variables)
    with subprocess.Popen(command(arguments), env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b"".join(iter(lambda: read(ours), b""))
    os.close(ours)
    assert process.returncode in (0, 1), output
    text = output.decode().replace("\r\n", "\n")
    for code in ("32", "31", "90", "0"):
        text = text.replace(f"\x1b[{code}m", "")
    assert "\x1b" not in text
    return text


def read(descriptor: int) -> bytes:
    """The next bytes of a pseudo-terminal; none when the other end is closed, which Linux reports as EIO."""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""


def command(arguments: tuple[str, ...]) -> tuple[str, ...]:
    return (sys.executable, "-m", "ourvidz.cli.main", *arguments)


@pytest.fixture(params=[run_piped, run_on_terminal], ids=["piped", "terminal"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run an `ourvidz` command at 80 columns, with a state directory of the test."""

    def in_state_dir(*arguments: str, **variables: str) -> str:
        return str(request.param(*arguments, **{"OURVIDZ_STATE_DIR": str(tmp_path)} | variables))

    return in_state_dir


@pytest.fixture
def dead_letter(redis_url: str) -> Iterator[str]:
    """The id of a callback that was refused with a long error."""
    ledger = Ledger(redis_url)
    job = ImageJob(
        id=JOB_ID,
        type="sdxl_image_fast",
        user_id="user-1",
        expected_time=30,
        prompt="a hill",
        steps=15,
        guidance_scale=6.0,
        width=64,
        height=64,
        seed=1,
    )
    ledger.register(job, priority=6)
    ledger.end(ledger.get(JOB_ID), outcome=Outcome(status="completed"))
    event = ledger.lease_event(JOB_ID, lease_s=5, token="t")
    assert event is not None
    ledger.dead_letter(event, status=502, error=ERROR)
    ledger.close()
    return event.event_id


def assert_fits(output: str) -> None:
    """Only a line that is one single word, such as a path, may be wider than 80 columns."""
    wide = [line for line in output.splitlines() if len(line) > 80 and len(line.split()) > 1]
    assert not wide


def words(output: str) -> str:
    return " ".join(output.split())


def test_doctor_shows_reasons_and_fixes_completely(run: Run) -> None:
    """The reason and the fix of a failure are what the command is for."""
    output = run("doctor", OURVIDZ_SDXL_MODEL=str(PATH), OURVIDZ_WAN_CACHE_THRESHOLD="0.1")
    assert_fits(output)
    assert f"There is no SDXL checkpoint at {PATH}. fix: set OURVIDZ_SDXL_MODEL to" in words(output)
    assert "only first_block and mag use it fix: leave it out, or set OURVIDZ_WAN_CACHE" in words(output)
    assert str(PATH) in output, "a path is not split"


def test_the_list_of_models_shows_names_paths_and_problems_completely(run: Run) -> None:
    """A name or path that is cut off cannot be copied into a setting."""
    output = run("models", "list", OURVIDZ_SDXL_MODEL=str(PATH))
    assert_fits(output)
    assert f"{INDENT}{PATH}\n" in output
    assert f"problem: There is no SDXL checkpoint at {PATH}." in words(output)
    assert "tiny-qwen/instruct" in output


def test_the_list_of_callbacks_shows_ids_and_errors_completely(
    run: Run, redis_url: str, dead_letter: str
) -> None:
    """The id is what `callbacks show` and `callbacks replay` take."""
    output = run("callbacks", "list", OURVIDZ_REDIS_URL=redis_url)
    assert_fits(output)
    assert [line.split()[0] for line in output.splitlines() if "msg_" in line] == [dead_letter]
    assert f"job {JOB_ID}" in output
    assert f"deliveries: 1, last status: 502, last error: {ERROR}" in words(output)
