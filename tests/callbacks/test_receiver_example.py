"""The receiver example, under the runtime it is written for, against what we sign."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ourvidz.callbacks.payload import build, encode
from ourvidz.callbacks.signing import headers
from ourvidz.jobs.outcome import Asset, Outcome
from ourvidz.ledger.record import OutboxEvent

pytestmark = pytest.mark.deno

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "receiver" / "index.ts"
NEW, OLD, FOREIGN = (
    "whsec_" + base64.b64encode(name * 4).decode() for name in (b"new-key.", b"old-key.", b"foreign.")
)


@pytest.fixture(scope="module")
def deno() -> str:
    """The Deno binary: $DENO_BIN, the path, or what scripts/install-deno installed."""
    installed = ROOT / ".venv" / "deno" / "node_modules" / ".bin" / "deno"
    found = (
        os.environ.get("DENO_BIN") or shutil.which("deno") or (str(installed) if installed.exists() else None)
    )
    if found is None:
        message = "Deno is not installed: run scripts/install-deno"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Deno of its own, that asks nobody for anything."""
    where = tmp_path_factory.mktemp("deno")
    return {"DENO_DIR": str(where), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1", "PATH": os.environ["PATH"]}


StartReceiver = Callable[..., int]


@pytest.fixture(scope="module")
def start(deno: str, cache: dict[str, str]) -> Iterator[StartReceiver]:
    """Start the example with some secrets; its port."""
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
    """A receiver that knows all three kinds of secret, while they rotate."""
    return start(
        SUPABASE_SERVICE_ROLE_KEY="the key",
        JOB_CALLBACK_SECRET="new,old",
        OURVIDZ_WEBHOOK_SECRET=f"{NEW} {OLD}",
    )


@pytest.fixture
def body(make_event: Callable[..., OutboxEvent]) -> bytes:
    """What we tell of a finished job."""
    asset = Asset(type="image", key="workspace-temp/u/j/0.png")
    event = make_event(kind="completed", outcome=Outcome(status="completed", assets=(asset,)))
    return encode(build(event, worker_version="1"))


def signed(body: bytes, event_id: str, *, age_s: float = 0, **chosen: Any) -> dict[str, str]:
    given: dict[str, Any] = {
        "at": datetime.now(UTC) - timedelta(seconds=age_s),
        "service_key": "the key",
        "callback_secrets": ("new",),
        "webhook_secrets": (NEW,),
    }
    return headers(body, event_id=event_id, **given | chosen)


def post(port: int, body: bytes, sent: dict[str, str]) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/functions/v1/job-callback", body, sent)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def test_the_example_is_sound(deno: str, cache: dict[str, str]) -> None:
    """It is what people copy: it must type-check."""
    checked = subprocess.run(
        [deno, "check", str(EXAMPLE)], env=cache, capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr


def test_the_example_takes_what_we_sign(port: int, body: bytes) -> None:
    """All three headers hold, and the answer has the fields of the live receiver."""
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
    """Deliveries repeat; a second one is answered and not handled."""
    first = post(port, body, signed(body, "msg_twice"))
    second = post(port, body, signed(body, "msg_twice"))
    assert first[1]["message"] == "job completed"
    assert second[0] == 200
    assert second[1]["message"] == "already handled"


@pytest.mark.parametrize(
    "chosen",
    [
        {"callback_secrets": ("old",)},
        {"webhook_secrets": (OLD,)},
        {"callback_secrets": ("new", "foreign"), "webhook_secrets": (FOREIGN, NEW)},
        {"webhook_secrets": (OLD, FOREIGN), "callback_secrets": ("old",)},
        {"age_s": 240},
    ],
    ids=["old callback secret", "old webhook secret", "sender rotates", "both rotate", "four minutes old"],
)
def test_the_example_goes_along_with_rotation(
    port: int, body: bytes, chosen: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """No callback is lost while secrets change."""
    assert post(port, body, signed(body, f"msg_{request.node.name}", **chosen))[0] == 200


@pytest.mark.parametrize(
    ("chosen", "header"),
    [
        ({"service_key": "another"}, "Authorization"),
        ({"service_key": None}, "Authorization"),
        ({"callback_secrets": ("foreign",)}, "X-Callback-Signature"),
        ({"callback_secrets": ()}, "X-Callback-Signature"),
        ({"webhook_secrets": (FOREIGN,)}, "webhook-signature"),
        ({"webhook_secrets": ()}, "webhook-signature"),
        ({"age_s": 3600}, "webhook-signature"),
        ({"age_s": -3600}, "webhook-signature"),
    ],
)
def test_the_example_refuses_what_does_not_hold(
    port: int, body: bytes, chosen: dict[str, Any], header: str
) -> None:
    """Each check counts on its own: wrong secret, no header, old and future timestamps."""
    status, answer = post(port, body, signed(body, "msg_refused", **chosen))
    assert status == 401
    assert answer == {"success": False, "message": f"{header} is missing or wrong"}


def test_the_example_refuses_a_changed_body(start: StartReceiver, port: int, body: bytes) -> None:
    """One byte is enough, for each signature alone."""
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
def test_the_example_refuses_malformed_headers(port: int, body: bytes, name: str, value: str) -> None:
    """A stranger's header is a 401, never a crash."""
    assert post(port, body, signed(body, "msg_malformed") | {name: value})[0] == 401


def test_the_example_without_secrets_refuses_everything(start: StartReceiver, body: bytes) -> None:
    """A forgotten setting must not open the door."""
    assert post(start(), body, signed(body, "msg_open"))[0] == 500


def test_the_example_says_no_to_what_is_no_callback(port: int) -> None:
    """A signed body may still be wrong: a dead letter, not a retry."""
    for body in (b"not json", b"[]", b"null", b'{"job_id":"j","status":"odd"}'):
        assert post(port, body, signed(body, "msg_odd"))[0] == 400
