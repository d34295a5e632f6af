"""`ourvidz flower`: the login of Celery's monitor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ourvidz.cli import flower, stack
from ourvidz.cli.main import cli
from ourvidz.cli.state import StateDir
from ourvidz.errors import SettingsError
from ourvidz.settings import load_settings
from ourvidz.settings import settings as process_settings


def login_of(tmp_path: Path, **variables: Any) -> str | None:
    """The login with which `ourvidz up` starts Flower."""
    return stack.flower_login(load_settings(_env_file=None, **variables), StateDir(tmp_path).secrets())


def test_up_generates_a_login_once(tmp_path: Path) -> None:
    """It stays the same over restarts, and is readable by its owner only."""
    login = login_of(tmp_path)
    assert login is not None
    assert login == login_of(tmp_path)
    user, _, password = login.partition(":")
    assert (user, len(password) >= 32) == ("ourvidz", True)
    assert (tmp_path / "secrets.json").stat().st_mode & 0o77 == 0


def test_a_state_directory_of_an_earlier_release_gets_a_login(tmp_path: Path) -> None:
    """Its other secrets stay: callbacks are signed with them."""
    before = {"redis_password": "r", "callback_secret": "c", "webhook_secret": "whsec_w"}
    StateDir(tmp_path).write_private("secrets.json", json.dumps(before))
    login = login_of(tmp_path)
    stored = json.loads((tmp_path / "secrets.json").read_text())
    assert stored == before | {"flower_password": str(login).partition(":")[2]}
    assert len(stored["flower_password"]) >= 32


@pytest.mark.parametrize(
    ("variables", "login"),
    [
        ({"OURVIDZ_FLOWER_LOGIN": "ops:pass:word"}, "ops:pass:word"),
        ({"FLOWER_BASIC_AUTH": "a:b,c:d"}, "a:b,c:d"),
        ({"OURVIDZ_FLOWER_LOGIN": "ops:p", "FLOWER_BASIC_AUTH": "a:b"}, "ops:p"),
        ({"FLOWER_UNAUTHENTICATED_API": "true"}, None),
        ({"OURVIDZ_FLOWER_LOGIN": "ops:p", "FLOWER_UNAUTHENTICATED_API": "true"}, "ops:p"),
    ],
)
def test_the_operators_choice_stays(tmp_path: Path, variables: dict[str, str], login: str | None) -> None:
    """Also the one to have no login, in Flower's own words."""
    assert login_of(tmp_path, **variables) == login


@pytest.mark.parametrize("login", ["ops", "ops:", ":p", "ops:a,b"])
def test_a_malformed_login_is_refused_and_not_shown(login: str) -> None:
    """Flower would take a part of it for a second login, or none."""
    with pytest.raises(SettingsError, match="OURVIDZ_FLOWER_LOGIN") as refused:
        flower.find_login(load_settings(_env_file=None, OURVIDZ_FLOWER_LOGIN=login))
    assert f"{login!r}" not in refused.value.message


def test_outside_of_up_flower_does_not_start_without_a_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reaches it can stop workers."""
    monkeypatch.chdir(tmp_path)
    process_settings.cache_clear()
    result = CliRunner().invoke(cli, ["flower"])
    assert (result.exit_code, "OURVIDZ_FLOWER_LOGIN" in result.output) == (2, True)
