"""The check that a receiver accepts our signature and refuses what nobody signed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from ourvidz.callbacks import signing
from ourvidz.cli.signature_check import check_signatures
from ourvidz.settings import Settings

MakeSettings = Callable[..., Settings]
Answer = Callable[[bytes, dict[str, str]], int]
SECRETS = {"JOB_CALLBACK_SECRET": "ours", "OURVIDZ_WEBHOOK_SECRET": "whsec_bWVhZG93LW1lYWRvdy1tZWFkb3c="}


@contextmanager
def receiver(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver that answers POST with the status that `answer` returns; its URL, and what it got."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            got.append(json.loads(body))
            self.send_response(answer(body, headers))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Write no access log."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/callback", got
        server.shutdown()
        thread.join()


def verifying(body: bytes, headers: dict[str, str]) -> int:
    """Verifies first, as our example does, and then knows no such status."""
    secrets = {"callback_secrets": ("ours",), "webhook_secrets": (SECRETS["OURVIDZ_WEBHOOK_SECRET"],)}
    return 400 if signing.verify(body, headers, **secrets).ok else 401


def by_key(_: bytes, headers: dict[str, str]) -> int:
    """Checks the service key and no signature."""
    return 200 if headers.keys() & {"authorization", "apikey"} else 401


def test_a_receiver_that_verifies_passes_and_gets_no_callback(make_settings: MakeSettings) -> None:
    """What it gets has no status of a job."""
    with receiver(verifying) as (url, got):
        check = check_signatures(make_settings(OURVIDZ_CALLBACK_URL=url, **SECRETS))
    assert (check.status, check.fix) == ("ok", "")
    assert [(document["job_id"], document["status"]) for document in got] == [("ourvidz-doctor", "ping")] * 2


@pytest.mark.parametrize(
    ("answer", "variables", "status", "reason"),
    [
        (verifying, {"JOB_CALLBACK_SECRET": "theirs"}, "failed", "refuses our signature (HTTP 401)"),
        (lambda *_: 200, SECRETS, "failed", "accepts a document that nobody signed (HTTP 200)"),
        (lambda *_: 404, SECRETS, "failed", "answers a signed document with HTTP 404"),
        (lambda *_: 302, SECRETS, "failed", "answers a signed document with HTTP 302"),
        (lambda *_: 500, SECRETS, "failed", "answers a signed document with HTTP 500"),
        (lambda *_: 422, SECRETS, "ok", "cannot be seen from here"),
        (
            lambda _, headers: 200 if "authorization" in headers else 401,
            {"SUPABASE_SERVICE_KEY": "key"},
            "ok",
            "r",
        ),
        (lambda *_: 200, {}, "skipped", "there is no secret"),
    ],
)
def test_a_receiver_is_judged_by_its_two_answers(
    make_settings: MakeSettings, answer: Answer, variables: dict[str, str], status: str, reason: str
) -> None:
    """One that refuses us loses every callback; one that refuses nobody takes anybody's."""
    with receiver(answer) as (url, _):
        check = check_signatures(make_settings(OURVIDZ_CALLBACK_URL=url, **variables))
    assert check.status == status, check.reason
    assert reason in check.reason
    assert bool(check.fix) == (status == "failed")


def test_without_a_receiver_or_an_answer(
    make_settings: MakeSettings, unused_port: int, production: dict[str, str]
) -> None:
    """The inbox of `ourvidz up` needs no check; production needs a secret."""
    assert check_signatures(make_settings()).status == "skipped"
    gone = check_signatures(make_settings(OURVIDZ_CALLBACK_URL=f"http://127.0.0.1:{unused_port}", **SECRETS))
    assert gone.status == "failed"
    assert check_signatures(make_settings(**production)).fix.startswith("set JOB_CALLBACK_SECRET")
