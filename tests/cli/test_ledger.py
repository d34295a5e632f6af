"""`ourvidz ledger check`: what it prints, and its exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner, Result

from ourvidz import dispatch
from ourvidz.cli.ledger import ledger as command
from ourvidz.ledger.store import Ledger
from ourvidz.settings import load_settings
from ourvidz.wiring import control
from tests.factories import image_job, publishing_to

LONG_ID = "8f14e45f-ceea-467a-9575-6b1c3f0f7c11-of-a-caller-who-likes-long-ids-8f14e45f-ceea-467a"


@pytest.fixture
def store(redis_url: str, tmp_path: Path) -> Iterator[redis.Redis]:
    """A client of the server whose ledger and broker the command checks. One job is queued."""
    settings = load_settings(
        OURVIDZ_STATE_DIR=tmp_path, OURVIDZ_REDIS_URL=redis_url, OURVIDZ_KEY_PREFIX="t:", _env_file=None
    )
    ledger = Ledger(redis_url, prefix="t:")
    with (
        publishing_to(redis_url),
        control.using(control.build(settings, ledger=ledger)),
        redis.Redis.from_url(redis_url) as client,
    ):
        dispatch.publish(ledger.register(image_job(LONG_ID), priority=6).record)
        yield client
    ledger.close()


def run(*options: str) -> Result:
    return CliRunner().invoke(command, ["check", *options], env={"COLUMNS": "80"})


@pytest.mark.usefixtures("store")
def test_a_healthy_ledger_is_one_line() -> None:
    """Exit status 0, for scripts."""
    result = run()
    assert (result.exit_code, result.stdout) == (0, "1 jobs and 0 callbacks checked: all is well\n")


def test_findings_are_shown_and_mended(store: redis.Redis) -> None:
    """Exit status 1 until all is mended."""
    store.zadd("t:leases", {"gone": 1})
    store.zrem("t:queued:sdxl_queue", LONG_ID)
    checked = run()
    assert checked.exit_code == 1
    assert "in leases without a record" in checked.stdout
    assert "not in queued:sdxl_queue although it is queued" in checked.stdout
    assert checked.stdout.splitlines()[-1] == "2 jobs and 0 callbacks checked: 2 found, 0 mended, 2 left"
    mended = run("--repair")
    assert mended.exit_code == 0
    assert mended.stdout.splitlines()[-1] == "2 jobs and 0 callbacks checked: 2 found, 2 mended, 0 left"
    assert run().exit_code == 0


def test_the_table_fits_eighty_columns(store: redis.Redis) -> None:
    """Only an id that is wider than that is."""
    store.zrem("t:queued:sdxl_queue", LONG_ID)
    lines = run().stdout.splitlines()
    assert all(len(line) <= 80 or line.strip() == LONG_ID for line in lines), lines
    assert any(LONG_ID in line for line in lines)


def test_json_has_every_finding(store: redis.Redis) -> None:
    """One line, also when nothing is found."""
    assert json.loads(run("--json").stdout) == {"ok": True, "jobs": 1, "events": 0, "findings": []}
    store.zadd("t:leases", {f"gone{number}": 1 for number in range(150)})
    result = run("--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["ok"], document["jobs"], len(document["findings"])) == (False, 151, 150)
    expected = {
        "code": "dangling",
        "subject": "gone0",
        "detail": "in leases without a record",
        "mended": False,
    }
    assert document["findings"][0] == expected
    table = run()
    assert "50 more (in all 150 dangling); --json prints them" in table.stderr
