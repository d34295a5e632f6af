"""Secrets that are planted in every setting, and searched for in everything that a process shows."""

from __future__ import annotations

import base64
import json
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from ourvidz.cli.main import cli
from ourvidz.errors import SettingsError
from ourvidz.settings import Settings, load_settings
from ourvidz.web.auth import load_keyring
from ourvidz.wiring import control

MARK = "Xq7pLANTED"
NO_SECRETS = {
    "OURVIDZ_CALLBACK_KEY_HOSTS",
    "OURVIDZ_KEY_PREFIX",
    "OURVIDZ_REQUIRE_KEYS",
    "OURVIDZ_LIMIT_SUBMIT_KEY",
    "OURVIDZ_LIMIT_SYNC_KEY",
    "OURVIDZ_C2PA_KEY",
    "OURVIDZ_AUDIT_KEY",
    "OURVIDZ_S3_ACCESS_KEY_ID",
}
"""Variables that are named like secrets and are none: hosts, a prefix, a choice, limits, a path, an id."""


def secret_types(annotation: Any) -> Iterator[Any]:
    """Yield the types inside an annotation."""
    yield annotation
    for inner in get_args(annotation):
        yield from secret_types(inner)


def secret_variables() -> list[str]:
    """The variables whose values are secret."""
    return [
        str(field.validation_alias)
        for field in Settings.model_fields.values()
        if SecretStr in secret_types(field.annotation)
    ]


def planted(name: str) -> str:
    """A value of a variable with the mark in it, valid as that variable's."""
    if "REDIS_URL" in name:
        return f"redis://user:{MARK}@127.0.0.1:1/0"
    if name == "OURVIDZ_WEBHOOK_SECRET":
        return "whsec_" + base64.b64encode(f"{MARK}-and-more-of-it".encode()).decode()
    if name == "OURVIDZ_API_KEYS":
        return f"ops:{MARK}-0123456789abcdef:jobs+admin"
    return f"{MARK}-{name.lower()}-0123456789"


MARKS = (MARK, base64.b64encode(f"{MARK}-and-more-of-it".encode()).decode()[:20])

Show = Callable[[Settings], str]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a secret in every variable that has one."""
    variables = {name: planted(name) for name in secret_variables()}
    return load_settings(
        _env_file=None,
        OURVIDZ_STATE_DIR=tmp_path,
        SUPABASE_URL="http://127.0.0.1:1",
        UPSTASH_REDIS_REST_URL="https://host.test",
        OURVIDZ_S3_ACCESS_KEY_ID="id",
        OURVIDZ_MODERATION_URL="http://127.0.0.1:1/v1",
        OURVIDZ_IMAGE_CLASSIFIER="http://127.0.0.1:1/v1",
        OURVIDZ_METRICS_URL="http://127.0.0.1:1/m",
        OURVIDZ_QWEN_BASE_URL="http://127.0.0.1:1/v1",
        **variables,
    )


def test_every_variable_that_is_named_like_a_secret_is_one() -> None:
    """A new key cannot be forgotten: its type decides what the other tests plant."""
    named = {
        str(field.validation_alias)
        for field in Settings.model_fields.values()
        if re.search(r"KEY|TOKEN|SECRET|PASSWORD|LOGIN|BASIC_AUTH|REDIS_URL", str(field.validation_alias))
    }
    assert named - NO_SECRETS == set(secret_variables())


def objects(settings: Settings) -> Iterator[object]:
    """Yield what is built from the settings and holds a secret, or once did."""
    app = control.build(settings)
    yield from (settings, app, app.target, app.moderation, app.pictures, app.metrics_reporter)
    yield from (load_keyring(settings), load_keyring(settings).__dict__)
    from ourvidz.pipelines.texts.remote import TextServer

    yield TextServer("http://127.0.0.1:1", key=MARK)


def test_no_object_shows_a_secret(settings: Settings) -> None:
    """Neither by itself nor in a container or a message."""
    for each in objects(settings):
        shown = f"{each!r} {each} {[each]}"
        assert not [mark for mark in MARKS if mark in shown], type(each)
    dumped = settings.model_dump_json() + json.dumps(settings.model_dump(mode="json"))
    assert not [mark for mark in MARKS if mark in dumped]


def test_no_traceback_with_local_variables_shows_a_secret(settings: Settings) -> None:
    """Error reporters collect the variables of every frame."""

    def fail(given: Settings) -> None:
        app = control.build(given)  # noqa: F841
        keyring = load_keyring(given)  # noqa: F841
        raise RuntimeError("failed")

    try:
        fail(settings)
    except RuntimeError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "keyring" in shown
    assert not [mark for mark in MARKS if mark in shown]


def load_all(**variables: Any) -> None:
    """Load settings and what is parsed from them when a process starts."""
    settings = load_settings(**variables)
    control.build(settings)
    load_keyring(settings)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OURVIDZ_REDIS_URL", f"http://user:{MARK}@host"),
        ("OURVIDZ_REDIS_URL", MARK),
        ("SUPABASE_SERVICE_KEY", f"sb_publishable_{MARK}"),
        ("SUPABASE_SERVICE_KEY", f"{MARK} {MARK}"),
        ("OURVIDZ_WEBHOOK_SECRET", f"{MARK}!"),
        ("OURVIDZ_API_KEYS", MARK),
        ("OURVIDZ_API_KEYS", f"{MARK}:jobs"),
        ("OURVIDZ_API_KEYS", f"ops:{MARK}"),
        ("OURVIDZ_API_KEYS", f"ops:{MARK}:jobs+nothing"),
        ("OURVIDZ_API_KEYS", f"ops:key:{MARK}"),
    ],
)
def test_a_wrong_value_is_named_and_not_shown(tmp_path: Path, variable: str, value: str) -> None:
    """Neither in the message nor in a traceback with the variables of its frames."""
    with pytest.raises(SettingsError) as refused:
        load_all(_env_file=None, OURVIDZ_STATE_DIR=tmp_path, **{variable: SecretStr(value)})
    assert variable in refused.value.message
    assert MARK not in refused.value.message
    frames = refused.value.__traceback__.tb_next if refused.value.__traceback__ else None
    settings_frames = [
        frame for frame in traceback.walk_tb(frames) if "settings" in frame[0].f_code.co_filename
    ]
    assert not [
        name
        for frame, _ in settings_frames
        for name, local in frame.f_locals.items()
        if MARK in f"{local!r} {local}"
    ]


def test_wrong_entries_are_named_by_their_number(tmp_path: Path) -> None:
    """An entry without its name begins with the key."""
    keys = "ops:0123456789:jobs,tail-of-a-key"
    with pytest.raises(SettingsError, match="OURVIDZ_API_KEYS: entry 2 ") as refused:
        load_keyring(load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path, OURVIDZ_API_KEYS=keys))
    assert "tail-of" not in refused.value.message


@pytest.mark.parametrize("key", ["k", "0123456789abcde", "a" * 40, "abab" * 10, "a1" * 16])
@pytest.mark.parametrize("variable", ["OURVIDZ_API_KEYS", "SDXL_WORKER_API_KEY"])
def test_a_key_that_can_be_guessed_is_refused_where_others_reach_the_shim(
    tmp_path: Path, key: str, variable: str
) -> None:
    """On loopback any key will do: there it keeps pages of other sites away."""

    def load(value: str, **variables: str) -> None:
        entry = f"ops:{value}:jobs" if variable == "OURVIDZ_API_KEYS" else value
        load_keyring(
            load_settings(_env_file=None, OURVIDZ_STATE_DIR=tmp_path, **{variable: entry}, **variables)
        )

    load(key)
    load(key, OURVIDZ_PUBLIC_URL="http://127.0.0.1:7860")
    for exposed in ({"OURVIDZ_HOST": "0.0.0.0"}, {"OURVIDZ_PUBLIC_URL": "https://shim.test"}):
        with pytest.raises(SettingsError, match=variable) as refused:
            load(key, **exposed)
        assert len(key) == 1 or key not in refused.value.message
        load("c0ffee5eedfadedfacade0123456789ab", **exposed)


def test_doctor_shows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every secret set and nothing to reach, so that each check has something to report."""
    monkeypatch.chdir(tmp_path)
    for name in secret_variables():
        monkeypatch.setenv(name, planted(name))
    extra = {
        "OURVIDZ_STATE_DIR": str(tmp_path),
        "SUPABASE_URL": "http://127.0.0.1:1",
        "OURVIDZ_S3_ACCESS_KEY_ID": "id",
        "UPSTASH_REDIS_REST_URL": "https://host.test",
        "OURVIDZ_MODERATION_URL": "http://127.0.0.1:1/v1",
        "OURVIDZ_QWEN_BASE_URL": "http://127.0.0.1:1/v1",
    }
    for name, value in extra.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ourvidz.cli.doctor.model_checks.check_torch", lambda *_: [])
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert "broker" in result.output
    assert not [mark for mark in MARKS if mark in result.output]
