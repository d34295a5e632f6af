"""`ourvidz callbacks`: lists, shows and replays callbacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from ourvidz.cli.callbacks import callbacks
from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.outcome import Outcome
from ourvidz.ledger.store import Ledger
from ourvidz.liveness import registration
from ourvidz.records.record import OutboxEvent, ReadyJob
from ourvidz.settings import load_settings
from ourvidz.wiring import control
from tests.factories import worker

PROMPT = "a lighthouse on a hill"


@pytest.fixture
def ledger(tmp_path: Any, make_ledger: Callable[..., Ledger]) -> Iterator[Ledger]:
    """The ledger that the command uses."""
    settings = load_settings(OURVIDZ_STATE_DIR=tmp_path, _env_file=None)
    with capture_logs(), control.using(control.build(settings, ledger=make_ledger())) as current:
        yield current.ledger


@pytest.fixture
def dead_letter(ledger: Ledger) -> Callable[[str], OutboxEvent]:
    """Makes a job whose terminal callback the receiver refused; returns that callback."""

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
        ledger.end(ledger.get(job_id), outcome=Outcome(status="completed"))
        event = ledger.lease_event(job_id, lease_s=5, token="t")
        assert event is not None
        ledger.dead_letter(event, status=400, error="HTTP 400")
        return event

    return make


def run(*arguments: str) -> Result:
    return CliRunner().invoke(callbacks, arguments)


def test_the_list_shows_dead_letters_without_prompts(dead_letter: Callable[[str], OutboxEvent]) -> None:
    """Prompts are private; only `callbacks show` prints them."""
    event = dead_letter("job-1")
    table = run("list")
    assert table.exit_code == 0, table.output
    assert event.event_id in table.output
    document = run("list", "--json")
    assert PROMPT not in table.output + document.output
    (row,) = json.loads(document.output)
    assert (row["job_id"], row["state"], row["last_status"], row["last_error"]) == (
        "job-1",
        "dead",
        400,
        "HTTP 400",
    )


def test_the_list_is_filtered_by_state_and_limited(dead_letter: Callable[[str], OutboxEvent]) -> None:
    """Without a match the list says so."""
    for n in range(3):
        dead_letter(f"job-{n}")
    assert len(json.loads(run("list", "--limit", "2", "--json").output)) == 2
    assert json.loads(run("list", "--state", "delivered", "--json").output) == []
    assert "No pending callbacks" in run("list", "--state", "pending").output


def test_show_prints_the_payload(dead_letter: Callable[[str], OutboxEvent]) -> None:
    """It is the payload that the receiver gets, prompt included."""
    event = dead_letter("job-1")
    document = json.loads(run("show", event.event_id, "--json").output)
    assert document["payload"]["job_id"] == "job-1"
    assert document["payload"]["metadata"]["original_prompt"] == PROMPT
    assert "original_prompt" in run("show", event.event_id).output


def test_show_of_an_unknown_callback_fails(ledger: Ledger) -> None:
    """Exit status 1, not an empty output."""
    assert run("show", "msg_unknown").exit_code == 1


def test_replay_delivers_again(ledger: Ledger, dead_letter: Callable[[str], OutboxEvent]) -> None:
    """The callback is due, and the io processes are told so."""
    event = dead_letter("job-1")
    while ledger.take_ready(wait_s=0.01):
        continue
    result = run("replay", event.event_id, "--json")
    assert json.loads(result.output) == {"replayed": [event.event_id], "unknown": []}
    replayed = ledger.get_event(event.event_id)
    assert replayed is not None
    assert (replayed.state, replayed.deliveries) == ("pending", 0)
    assert ledger.take_ready(wait_s=0.01) == ReadyJob("job-1", None)


def test_every_dead_letter_can_be_replayed_at_once(
    ledger: Ledger, dead_letter: Callable[[str], OutboxEvent]
) -> None:
    """For the time after an outage of the receiver."""
    events = [dead_letter(f"job-{n}") for n in range(3)]
    result = json.loads(run("replay", "--all-dead", "--json").output)
    assert sorted(result["replayed"]) == sorted(event.event_id for event in events)


def test_replay_lists_unknown_ids(ledger: Ledger, dead_letter: Callable[[str], OutboxEvent]) -> None:
    """The other callbacks are replayed; the exit status is 1."""
    event = dead_letter("job-1")
    result = run("replay", "msg_unknown", event.event_id, "--json")
    assert result.exit_code == 1
    assert json.loads(result.output) == {"replayed": [event.event_id], "unknown": ["msg_unknown"]}


@pytest.mark.parametrize("arguments", [[], ["msg_1", "--all-dead"]])
def test_replay_takes_either_ids_or_all_dead(ledger: Ledger, arguments: list[str]) -> None:
    """No ids, and ids beside --all-dead, are usage errors."""
    assert run("replay", *arguments).exit_code == 2


def test_registrations_are_listed_and_not_replayed(
    ledger: Ledger, dead_letter: Callable[[str], OutboxEvent]
) -> None:
    """An old one would register a worker again that is gone."""
    settings = load_settings(RUNPOD_POD_ID="k2x9", SUPABASE_URL="https://abc.supabase.co", _env_file=None)
    made = registration.of_worker(settings, "sdxl", models={})
    ledger.heartbeat(worker(detail={"registration": registration.as_detail(made)}))
    registration.update_registrations(ledger)
    (row,) = json.loads(run("list", "--state", "pending", "--json").output)
    assert (row["kind"], row["host"]) == ("registered", "abc.supabase.co")
    payload = json.loads(run("show", row["event_id"], "--json").output)["payload"]
    assert payload["worker_url"] == "https://k2x9-7860.proxy.runpod.net"
    (event,) = ledger.list_events("pending")
    ledger.dead_letter(event, status=404, error="HTTP 404")
    refused = run("replay", row["event_id"])
    assert refused.exit_code == 2
    assert "is a registration" in refused.output
    other = dead_letter("job-1")
    assert json.loads(run("replay", "--all-dead", "--json").output)["replayed"] == [other.event_id]
