"""`ourvidz storage init` creates what is missing, and a wrong key is one line wherever it is used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from campaigns.s3_server import S3Server
from campaigns.supabase import SupabaseServer
from ourvidz.cli import checks
from ourvidz.cli.main import cli
from ourvidz.errors import SettingsError
from ourvidz.settings import load_settings, settings

WRONG = "a-wrong-secret"


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch):
    """Set variables for the commands of a test."""

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        settings.cache_clear()

    yield change
    settings.cache_clear()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_a_bucket_is_created_once(s3_server: S3Server, configure) -> None:
    """The command can be part of a deployment."""
    configure(**s3_server.environment("created-once"))
    created = run("storage", "init", "--json")
    assert json.loads(created.stdout)["created"] == ["created-once"]
    again = run("storage", "init")
    assert again.stdout == f"s3://created-once at {s3_server.url}: ready\n"


def test_a_directory_is_created(configure, tmp_path: Path) -> None:
    """Local storage is prepared with the same command."""
    configure(OURVIDZ_STORAGE_DIR=str(tmp_path / "assets"))
    assert run("storage", "init").stdout == f"{tmp_path}/assets: {tmp_path}/assets created\n"


@pytest.mark.parametrize(
    "command",
    [("storage", "init"), ("worker", "sdxl"), ("worker", "keeper"), ("worker", "web"), ("up", "--no-flower")],
)
def test_a_wrong_key_is_one_line(
    s3_server: S3Server, configure, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """A worker with it would fail every job."""
    variables = {"OURVIDZ_S3_SECRET_ACCESS_KEY": WRONG, "OURVIDZ_STATE_DIR": str(tmp_path)}
    configure(**s3_server.environment("any") | variables)
    refused = run(*command)
    assert refused.exit_code == 2
    assert refused.stderr == (
        "Error: OURVIDZ_S3_ACCESS_KEY_ID, OURVIDZ_S3_SECRET_ACCESS_KEY: s3://any at "
        f"{s3_server.url}: the secret does not belong to this access key (SignatureDoesNotMatch)\n"
    )
    assert WRONG not in refused.output


def test_the_buckets_of_a_supabase_project_are_created(supabase_server: SupabaseServer, configure) -> None:
    """Those that exist are left as they are."""
    configure(**supabase_server.environment())
    run("storage", "init")
    again = run("storage", "init", "--json")
    assert json.loads(again.stdout) == {"storage": f"{supabase_server.url}/storage/v1", "created": []}


@pytest.mark.parametrize("command", [("storage", "init"), ("worker", "sdxl"), ("worker", "web")])
def test_a_wrong_supabase_key_is_one_line(
    supabase_server: SupabaseServer, configure, command: tuple[str, ...]
) -> None:
    """Also a key of another project."""
    configure(**supabase_server.environment() | {"SUPABASE_SERVICE_KEY": "sb_secret_wrong"})
    refused = run(*command)
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"Error: SUPABASE_SERVICE_KEY: {supabase_server.url}/storage/v1 refuses the service key (401)\n"
    )


def test_a_bucket_that_does_not_exist_stops_a_worker(s3_server: S3Server, configure) -> None:
    """The line names the command that helps."""
    configure(**s3_server.environment("not-there"))
    refused = run("worker", "wan")
    assert refused.exit_code == 2
    assert "OURVIDZ_S3_BUCKET" in refused.stderr
    assert "`ourvidz storage init`" in refused.stderr


def test_the_doctor_names_a_wrong_key_and_the_fix(s3_server: S3Server) -> None:
    """And shows no secret."""
    variables = s3_server.environment("checked")
    wrong = load_settings(_env_file=None, **variables | {"OURVIDZ_S3_SECRET_ACCESS_KEY": WRONG})
    check = checks.check_storage(wrong)
    assert check.status == "failed"
    assert "the secret does not belong to this access key" in check.reason
    assert "OURVIDZ_S3_" in check.fix
    assert WRONG not in check.reason
    assert WRONG not in repr(wrong)
    missing = checks.check_storage(load_settings(_env_file=None, **variables))
    assert (missing.status, "`ourvidz storage init`" in missing.fix) == ("failed", True)


def test_a_missing_library_is_one_line(
    s3_server: S3Server, configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra, which an installation with local storage does not have."""
    configure(**s3_server.environment("any"))
    for name in ("s3", "s3_client", "s3_errors"):
        monkeypatch.delitem(sys.modules, f"ourvidz.storage.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "obstore", None)
    refused = run("storage", "init")
    assert refused.exit_code == 2
    assert "pip install 'ourvidz[s3]'" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"OURVIDZ_S3_BUCKET": None}, "OURVIDZ_S3_BUCKET"),
        ({"OURVIDZ_S3_BUCKET": "a/b"}, "OURVIDZ_S3_BUCKET"),
        ({"OURVIDZ_S3_PREFIX": "a/../b"}, "OURVIDZ_S3_PREFIX"),
        ({"OURVIDZ_S3_ENDPOINT": "ftp://x"}, "OURVIDZ_S3_ENDPOINT"),
        ({"OURVIDZ_S3_SECRET_ACCESS_KEY": None}, "OURVIDZ_S3_SECRET_ACCESS_KEY"),
        ({"OURVIDZ_S3_CHECKSUM": "md5"}, "OURVIDZ_S3_CHECKSUM"),
        ({"OURVIDZ_SIGNED_URL_S": "700000"}, "OURVIDZ_SIGNED_URL_S"),
    ],
)
def test_a_wrong_setting_is_named(s3_server: S3Server, changes: dict[str, str | None], named: str) -> None:
    """Before anything is stored."""
    merged = s3_server.environment("any") | changes
    variables = {name: value for name, value in merged.items() if value is not None}
    with pytest.raises(SettingsError, match=named):
        load_settings(_env_file=None, **variables)
