"""`ourvidz imports`: lists, shows, retries and discards refused entries of raw lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result

from ourvidz import dispatch
from ourvidz.cli.imports import imports as command
from ourvidz.ledger.store import Ledger
from ourvidz.settings import load_settings
from ourvidz.wiring import control
from tests.factories import publishing_to

URL = "http://93.184.216.34/hook"
IMAGE = {"id": "a", "type": "sdxl_image_fast", "prompt": "a hill", "user_id": "me", "callback_url": URL}
Installation = tuple[redis.Redis, Callable[..., None]]


@pytest.fixture
def installation(redis_url: str, tmp_path: Path) -> Iterator[Installation]:
    """A client of the server, and a function that sets variables. Of two entries of a list, the first was
    refused for its receiver and the second one for its type."""
    ledger = Ledger(redis_url)

    def use(**variables: str) -> None:
        settings = load_settings(
            OURVIDZ_STATE_DIR=tmp_path, OURVIDZ_REDIS_URL=redis_url, _env_file=None, **variables
        )
        control._current = control.build(settings, ledger=ledger)

    with (
        publishing_to(redis_url),
        control.using(control.build(load_settings(_env_file=None), ledger=ledger)),
        redis.Redis.from_url(redis_url, decode_responses=True) as client,
    ):
        use()
        client.rpush("sdxl_queue", json.dumps(IMAGE), '{"id": "b", "type": "poem"}')
        assert dispatch.import_lists().refused == 2
        yield client, use
    ledger.close()


def run(*options: str) -> Result:
    return CliRunner().invoke(command, list(options), env={"COLUMNS": "100"})


def listed() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run("list", "--json").stdout)
    return rows


def test_refused_entries_are_listed_newest_first_without_their_prompts(installation: Installation) -> None:
    """The list is for a terminal that others see."""
    newest, oldest = listed()
    assert (newest["job_id"], newest["list"], newest["field"]) == ("b", "sdxl_queue", "type")
    assert (oldest["job_id"], oldest["code"], oldest["field"]) == ("a", "INVALID_PARAMETERS", "callback_url")
    assert newest["id"] != oldest["id"]
    text = run("list").stdout
    assert all(row["id"] in text and row["code"] in text for row in (newest, oldest))
    assert "a hill" not in text + json.dumps([newest, oldest])
    assert len(json.loads(run("list", "--limit", "1", "--json").stdout)) == 1


def test_one_entry_is_shown_with_what_is_in_it(installation: Installation) -> None:
    """To correct it and push it again."""
    refused_id = listed()[1]["id"]
    assert json.loads(json.loads(run("show", refused_id, "--json").stdout)["entry"]) == IMAGE
    assert "a hill" in run("show", refused_id).stdout
    assert run("show", "nobody").exit_code == 1


def test_a_retried_entry_becomes_a_job_once_the_reason_is_gone(installation: Installation) -> None:
    """The operator has allowed the receiver's host."""
    _, use = installation
    refused_id = listed()[1]["id"]
    use(OURVIDZ_CALLBACK_ALLOW="93.184.216.34")
    result = run("retry", refused_id, "--json")
    assert json.loads(result.stdout) == {"retried": [refused_id], "unknown": []}
    assert [row["job_id"] for row in listed()] == ["b"]
    assert dispatch.import_lists().accepted == 1
    assert control.current().ledger.get("a") is not None


def test_all_entries_are_retried_in_their_order(installation: Installation) -> None:
    """One that is refused again is kept again, as another entry."""
    client, _ = installation
    before = {row["id"] for row in listed()}
    assert run("retry", "--all").stdout == "2 retried\n"
    assert [json.loads(entry)["id"] for entry in client.lrange("sdxl_queue", 0, -1)] == ["a", "b"]
    assert run("list").stdout == "No refused entries.\n"
    assert dispatch.import_lists().refused == 2
    assert before.isdisjoint(row["id"] for row in listed())


def test_an_entry_of_a_list_that_nobody_imports_stays(installation: Installation) -> None:
    """In that list it would be forgotten."""
    _, use = installation
    use(OURVIDZ_IMPORT_LISTS="wan_queue")
    result = run("retry", "--all")
    assert (result.exit_code, len(listed())) == (1, 2)
    assert "OURVIDZ_IMPORT_LISTS" in result.stderr


def test_entries_are_discarded(installation: Installation) -> None:
    """Exit status 1 where an id is unknown, and the others are discarded."""
    newest, oldest = listed()
    result = run("discard", newest["id"], "nobody")
    assert (result.exit_code, result.stdout) == (1, "1 discarded\nno refused entry 'nobody'\n")
    assert [row["id"] for row in listed()] == [oldest["id"]]
    assert run("discard", "--all").stdout == "1 discarded\n"
    assert listed() == []


def test_ids_or_all_are_needed(installation: Installation) -> None:
    """An empty variable must not retry everything."""
    for verb in ("retry", "discard"):
        assert run(verb).exit_code == 2
        assert run(verb, "--all", "some-id").exit_code == 2
