"""`ourvidz callbacks`: operators see what callers were not told, and tell them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from ourvidz.app import app
from ourvidz.callbacks.target import NO_URL
from ourvidz.cli.callbacks import callbacks
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.record import OutboxEvent
from ourvidz.ledger.store import Ledger
from ourvidz.settings import load_settings
from ourvidz.tasks import callbacks as _deliver_task  # noqa: F401
from ourvidz.wiring import control

PROMPT = "a lighthouse on a hill"


@pytest.fixture
def ledger(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, make_ledger: Callable[..., Ledger]
) -> Iterator[Ledger]:
    """The ledger the command sees; tasks run at once, and no receiver is configured."""
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    chosen = load_settings(OURVIDZ_STATE_DIR=tmp_path, _env_file=None)
    with capture_logs(), control.using(control.build(chosen, ledger=make_ledger())) as current:
        yield current.ledger


@pytest.fixture
def dead_letter(ledger: Ledger) -> Callable[[str], OutboxEvent]:
    """A job whose terminal callback was refused."""

    def make(job_id: str) -> OutboxEvent:
        job = ImageJob(
            id=job_id,
            type="sdxl_image_fast",
            user_id="user-1",
            expected_time=30,
            prompt=PROMPT,
            steps=15,
            guidance_scale=6.0,
            width=64,
            height=64,
            seed=1,
        )
        ledger.register(job, priority=6)
        ledger.end(job_id, run=1, fence=0, outcome=Outcome(status="completed"))
        event = ledger.lease_event(job_id, lease_s=5, token="t")
        assert event is not None
        ledger.dead_letter(event, status=400, error="HTTP 400")
        return event

    return make


def run(*arguments: str) -> Result:
    return CliRunner().invoke(callbacks, arguments)


def test_the_list_shows_dead_letters_and_no_prompt(dead_letter: Callable[[str], OutboxEvent]) -> None:
    """Enough to decide, nothing a screen should not show."""
    event = dead_letter("job-1")
    shown = run("list")
    assert shown.exit_code == 0, shown.output
    assert event.event_id in shown.output
    told = run("list", "--json")
    assert PROMPT not in shown.output + told.output
    (row,) = json.loads(told.output)
    assert (row["job_id"], row["state"], row["last_status"], row["last_error"]) == (
        "job-1",
        "dead",
        400,
        "HTTP 400",
    )


def test_the_list_is_limited_and_by_state(dead_letter: Callable[[str], OutboxEvent]) -> None:
    """The newest matter most."""
    for n in range(3):
        dead_letter(f"job-{n}")
    assert len(json.loads(run("list", "--limit", "2", "--json").output)) == 2
    assert json.loads(run("list", "--state", "delivered", "--json").output) == []
    assert "No pending callbacks" in run("list", "--state", "pending").output


def test_show_prints_the_payload(dead_letter: Callable[[str], OutboxEvent]) -> None:
    """What the receiver gets is what the operator debugs with."""
    event = dead_letter("job-1")
    shown = json.loads(run("show", event.event_id, "--json").output)
    assert shown["payload"]["job_id"] == "job-1"
    assert shown["payload"]["metadata"]["original_prompt"] == PROMPT
    assert "original_prompt" in run("show", event.event_id).output


def test_show_of_an_unknown_callback_fails(ledger: Ledger) -> None:
    """A typing error is not an empty answer."""
    assert run("show", "msg_unknown").exit_code == 1


def test_replay_delivers_again(ledger: Ledger, dead_letter: Callable[[str], OutboxEvent]) -> None:
    """The letter goes the whole way: command, task, courier, which finds that no receiver is configured."""
    event = dead_letter("job-1")
    told = run("replay", event.event_id, "--json")
    assert json.loads(told.output) == {"replayed": [event.event_id], "unknown": []}
    again = ledger.get_event(event.event_id)
    assert again is not None
    assert again.last_error == NO_URL


def test_every_dead_letter_can_be_replayed_at_once(
    ledger: Ledger, dead_letter: Callable[[str], OutboxEvent]
) -> None:
    """After a receiver's bad day."""
    events = [dead_letter(f"job-{n}") for n in range(3)]
    told = json.loads(run("replay", "--all-dead", "--json").output)
    assert sorted(told["replayed"]) == sorted(event.event_id for event in events)


def test_replay_names_what_it_does_not_know(
    ledger: Ledger, dead_letter: Callable[[str], OutboxEvent]
) -> None:
    """The rest is replayed, and a script sees the failure."""
    event = dead_letter("job-1")
    told = run("replay", "msg_unknown", event.event_id, "--json")
    assert told.exit_code == 1
    assert json.loads(told.output) == {"replayed": [event.event_id], "unknown": ["msg_unknown"]}


@pytest.mark.parametrize("arguments", [[], ["msg_1", "--all-dead"]])
def test_replay_wants_either_names_or_all(ledger: Ledger, arguments: list[str]) -> None:
    """Nothing is replayed by accident."""
    assert run("replay", *arguments).exit_code == 2
