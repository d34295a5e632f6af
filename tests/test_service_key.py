"""Service keys: which header carries which key, and which keys are refused at start."""

from __future__ import annotations

import base64
import json

import pytest

from ourvidz.errors import SettingsError
from ourvidz.service_key import key_headers
from ourvidz.settings import load_settings
from ourvidz.settings.kinds import reveal


def jwt(**claims: object) -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


SERVICE_ROLE = jwt(role="service_role", iss="supabase")
SECRET = "sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz"


def test_a_jwt_is_a_bearer_token() -> None:
    """The gateway of a self-hosted project asks for it as `apikey` too."""
    assert key_headers(SERVICE_ROLE) == {"Authorization": f"Bearer {SERVICE_ROLE}", "apikey": SERVICE_ROLE}


def test_a_secret_key_is_never_a_bearer_token() -> None:
    """It is no JWT: gateways answer a bearer token of this form with 401."""
    assert key_headers(SECRET) == {"apikey": SECRET}


@pytest.mark.parametrize("token", ["a-token", "eyJust-a-word", "eyJ.x", "sbx"])
def test_any_other_token_is_a_bearer_token(token: str) -> None:
    """A receiver of an operator's own may compare a token of any form."""
    assert key_headers(token) == {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("sb_publishable_x", "is a publishable key; use a secret key (sb_secret_…)"),
        (
            jwt(role="anon"),
            "is the key of the role anon; use the service_role key or a secret key (sb_secret_…)",
        ),
        (f"{SECRET}\n", "has characters that no header can carry: copy it again"),
        (f"Bearer {SECRET}", "has characters that no header can carry: copy it again"),
        ("schlüssel", "has characters that no header can carry: copy it again"),
    ],
)
def test_a_key_that_opens_nothing_is_one_line_at_start(key: str, reason: str) -> None:
    """Else the first upload would fail, long after the mistake. The line does not contain the key."""
    with pytest.raises(SettingsError) as refused:
        load_settings(SUPABASE_SERVICE_KEY=key)
    assert refused.value.message == f"SUPABASE_SERVICE_KEY: {reason}"


@pytest.mark.parametrize("key", [SERVICE_ROLE, SECRET, jwt(sub="1"), "eyJ.!!!.x", "a-token"])
def test_keys_of_every_other_form_are_accepted(key: str) -> None:
    """Whether they are right only the server knows."""
    assert reveal(load_settings(SUPABASE_SERVICE_KEY=key).supabase_service_key) == key


def test_settings_print_no_secret() -> None:
    """An object is easily logged."""
    secrets = {
        name: f"s3cret-{at}"
        for at, name in enumerate(
            (
                *("SUPABASE_SERVICE_KEY", "JOB_CALLBACK_SECRET", "OURVIDZ_WEBHOOK_SECRET", "HF_TOKEN"),
                *("OURVIDZ_API_KEYS", "OURVIDZ_API_KEY", "WAN_WORKER_API_KEY", "CHAT_WORKER_API_KEY"),
                *("SDXL_WORKER_API_KEY", "OURVIDZ_QWEN_KEY", "OURVIDZ_MODERATION_KEY"),
            )
        )
    }
    upstash = {"UPSTASH_REDIS_REST_URL": "https://eu1.upstash.io", "UPSTASH_REDIS_REST_TOKEN": "s3cret-t"}
    printed = repr(load_settings(**secrets, **upstash)) + str(
        load_settings(OURVIDZ_REDIS_URL="redis://:s3cret-r@localhost/0")
    )
    assert "s3cret" not in printed
