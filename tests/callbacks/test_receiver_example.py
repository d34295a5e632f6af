"""The example receiver in Deno accepts what the project signs, and rejects everything else."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from campaigns.supabase import find_deno
from ourvidz.callbacks.payload import build, encode
from ourvidz.callbacks.signing import signed_headers
from ourvidz.cli.signature_check import check_signatures
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.records.record import OutboxEvent
from ourvidz.settings import load_settings

pytestmark = pytest.mark.deno

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "receiver" / "index.ts"
NEW, OLD, FOREIGN = (
    "whsec_" + base64.b64encode(name * 4).decode() for name in (b"new-key.", b"old-key.", b"foreign.")
)


@pytest.fixture(scope="module")
def deno() -> str:
    """The Deno binary."""
    binary = find_deno()
    if binary is None:
        message = "Deno is not installed: run scripts/install-deno"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return binary


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Deno with an empty cache that makes no requests of its own."""
    folder = tmp_path_factory.mktemp("deno")
    return {"DENO_DIR": str(folder), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1", "PATH": os.environ["PATH"]}


StartReceiver = Callable[..., int]


@pytest.fixture(scope="module")
def start(deno: str, cache: dict[str, str]) -> Iterator[StartReceiver]:
    """Start the example with these secrets in its environment and return its port."""
    running: list[subprocess.Popen[str]] = []

    def run(**secrets: str) -> int:
        process = subprocess.Popen(
            [deno, "run", "--no-prompt", "--cached-only", "--allow-env", "--allow-net", str(EXAMPLE)],
            env={**cache, "PORT": "0", **secrets},
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        return int(json.loads(process.stdout.readline())["listening"])

    yield run
    for process in running:
        process.terminate()
        process.communicate(timeout=10)


@pytest.fixture(scope="module")
def port(start: StartReceiver) -> int:
    """The port of a receiver with all three kinds of secret, two each of the signing ones."""
    return start(
        SUPABASE_SERVICE_ROLE_KEY="the key",
        JOB_CALLBACK_SECRET="new,old",
        OURVIDZ_WEBHOOK_SECRET=f"{NEW} {OLD}",
    )


@pytest.fixture
def body(make_event: Callable[..., OutboxEvent]) -> bytes:
    """The payload of a completed job."""
    asset = Asset(type="image", key="workspace-temp/u/j/0.png")
    event = make_event(kind="completed", outcome=Outcome(status="completed", assets=(asset,)))
    return encode(build(event, worker_version="1"))


def signed(body: bytes, event_id: str, *, age_s: float = 0, **arguments: Any) -> dict[str, str]:
    defaults: dict[str, Any] = {
        "at": datetime.now(UTC) - timedelta(seconds=age_s),
        "service_key": "the key",
        "callback_secrets": ("new",),
        "webhook_secrets": (NEW,),
    }
    return signed_headers(body, event_id=event_id, **defaults | arguments)


def post(port: int, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/functions/v1/job-callback", body, headers)
    response = connection.getresponse()
    document = json.loads(response.read())
    connection.close()
    return response.status, document


def test_the_example_type_checks(deno: str, cache: dict[str, str]) -> None:
    """People copy it into their own projects."""
    checked = subprocess.run(
        [deno, "check", str(EXAMPLE)], env=cache, capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr


def test_the_example_accepts_signed_callbacks(port: int, body: bytes) -> None:
    """All three signatures are valid, and the answer has the fields of the live receiver."""
    status, answer = post(port, body, signed(body, "msg_valid"))
    assert status == 200
    assert answer["success"] is True
    stamp = answer["debug"].pop("processingTimestamp")
    assert datetime.fromisoformat(stamp)
    assert answer["debug"] == {
        "job_id": "job-1",
        "jobStatus": "completed",
        "jobType": "sdxl_image_high",
        "format": "image",
        "quality": "high",
        "isSDXL": True,
        "isEnhanced": False,
        "assetsProcessed": 1,
    }


def test_the_example_handles_an_event_once(port: int, body: bytes) -> None:
    """Deliveries repeat; a second one is answered with 200 and not handled again."""
    first = post(port, body, signed(body, "msg_twice"))
    second = post(port, body, signed(body, "msg_twice"))
    assert first[1]["message"] == "job completed"
    assert second[0] == 200
    assert second[1]["message"] == "already handled"


@pytest.mark.parametrize(
    "arguments",
    [
        {"callback_secrets": ("old",)},
        {"webhook_secrets": (OLD,)},
        {"callback_secrets": ("new", "foreign"), "webhook_secrets": (FOREIGN, NEW)},
        {"webhook_secrets": (OLD, FOREIGN), "callback_secrets": ("old",)},
        {"age_s": 240},
    ],
    ids=["old callback secret", "old webhook secret", "sender rotates", "both rotate", "four minutes old"],
)
def test_the_example_accepts_old_and_new_secrets_during_rotation(
    port: int, body: bytes, arguments: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """No callback is lost while secrets change."""
    assert post(port, body, signed(body, f"msg_{request.node.name}", **arguments))[0] == 200


@pytest.mark.parametrize(
    ("arguments", "header"),
    [
        ({"service_key": "another"}, "the service key"),
        ({"service_key": None}, "the service key"),
        ({"callback_secrets": ("foreign",)}, "X-Callback-Signature"),
        ({"callback_secrets": ()}, "X-Callback-Signature"),
        ({"webhook_secrets": (FOREIGN,)}, "webhook-signature"),
        ({"webhook_secrets": ()}, "webhook-signature"),
        ({"age_s": 3600}, "webhook-signature"),
        ({"age_s": -3600}, "webhook-signature"),
    ],
)
def test_the_example_rejects_invalid_signatures(
    port: int, body: bytes, arguments: dict[str, Any], header: str
) -> None:
    """Each check fails on its own: wrong secret, missing header, old and future timestamps."""
    status, answer = post(port, body, signed(body, "msg_refused", **arguments))
    assert status == 401
    assert answer == {"success": False, "message": f"{header} is missing or wrong"}


def test_the_example_accepts_every_service_key_in_its_own_header(start: StartReceiver, body: bytes) -> None:
    """A project has both kinds while it changes over, and the worker may use any of them. A secret key as a
    bearer token is refused, as gateways do."""
    second, legacy = "sb_secret_two", "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2ln"
    keys = json.dumps({"default": "sb_secret_one", "worker": second})
    port = start(SUPABASE_SERVICE_ROLE_KEY=legacy, SUPABASE_SECRET_KEYS=keys)
    for at, key in enumerate((legacy, second)):
        changed = body.replace(b"job-1", b"job-%d" % (at + 2))
        assert post(port, changed, signed(changed, "x", service_key=key))[0] == 200
    for headers in (
        {"Authorization": f"Bearer {second}"},
        {"apikey": legacy},
        {"apikey": "sb_secret_three"},
        {"apikey": ""},
        {"Authorization": "Bearer "},
    ):
        assert post(port, body, signed(body, "x", service_key=None) | headers)[0] == 401


def test_the_example_rejects_a_changed_body(start: StartReceiver, port: int, body: bytes) -> None:
    """One changed byte breaks each signature."""
    changed = body.replace(b"completed", b"complete!", 1)
    assert post(port, changed, signed(body, "msg_changed"))[0] == 401
    only_webhook = start(OURVIDZ_WEBHOOK_SECRET=NEW)
    assert post(only_webhook, changed, signed(body, "msg_changed"))[0] == 401
    assert post(only_webhook, body, signed(body, "msg_changed", service_key=None))[0] == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Callback-Signature", "sha256=zz"),
        ("X-Callback-Signature", "md5=00"),
        ("webhook-signature", "v1,***"),
        ("webhook-signature", "v1"),
        ("webhook-signature", "v2,AAAA"),
        ("webhook-timestamp", "soon"),
        ("webhook-id", "msg_other"),
    ],
)
def test_the_example_rejects_malformed_headers(port: int, body: bytes, name: str, value: str) -> None:
    """Anybody can send them; the answer is 401, not an exception."""
    assert post(port, body, signed(body, "msg_malformed") | {name: value})[0] == 401


def test_the_example_without_secrets_rejects_everything(start: StartReceiver, body: bytes) -> None:
    """A forgotten setting must not disable all checks."""
    assert post(start(), body, signed(body, "msg_open"))[0] == 500


def test_the_example_rejects_signed_bodies_that_are_no_callbacks(port: int) -> None:
    """The 400 makes the event a dead letter; a 5xx would be retried for a day."""
    for body in (b"not json", b"[]", b"null", b'{"job_id":"j","status":"odd"}'):
        assert post(port, body, signed(body, "msg_odd"))[0] == 400


def test_doctor_checks_the_example_without_reporting_a_job(start: StartReceiver) -> None:
    """The example verifies before it reads, so one question is refused and the other one is no callback."""
    port = start(SUPABASE_SERVICE_ROLE_KEY="a-key", JOB_CALLBACK_SECRET="new", OURVIDZ_WEBHOOK_SECRET=NEW)
    variables = {
        "OURVIDZ_CALLBACK_URL": f"http://127.0.0.1:{port}/functions/v1/job-callback",
        "SUPABASE_SERVICE_KEY": "a-key",
        "OURVIDZ_WEBHOOK_SECRET": NEW,
    }
    check = check_signatures(load_settings(_env_file=None, JOB_CALLBACK_SECRET="new", **variables))
    assert (check.status, "refuses a document without one" in check.reason) == ("ok", True)
    check = check_signatures(load_settings(_env_file=None, JOB_CALLBACK_SECRET="foreign", **variables))
    assert (check.status, "refuses our signature (HTTP 401)" in check.reason) == ("failed", True)
