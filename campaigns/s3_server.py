"""A server with the API of S3: moto behind a check of signatures, with failures on demand."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from campaigns.resource import Resource
from campaigns.sigv4 import Refused, verify

ACCESS_KEY = "AKIACAMPAIGN"
SECRET_KEY = "wJalrXUtnFEMIK7MDENGbPxRfiCYcampaign"
REGION = "us-east-1"
OVERLOADED = ("503 Slow Down", "SlowDown")
ACCOUNT = "123456789012"
"""The account that moto uses for unknown keys."""
THREADS = 16
POLL_S = 0.1
"""How soon the server notices that it is stopped."""

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


class S3Server(Resource):
    """A server on a port of this machine, in threads of this process; use it as a context manager.

    What it stores is in memory. It accepts one access key only.
    """

    def __init__(self, *, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> None:
        super().__init__()
        self.access_key = access_key
        self.secret_key = secret_key
        self.requests: Counter[str] = Counter()
        """Requests by method, those that failed included."""
        self.headers: dict[str, str] = {}
        """The headers of all requests, names in lower case; the latest value of each."""
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._failures = 0
        self._failing_method: str | None = None
        self._answered_before_failure = 0
        self._lost_answers = self._answered_before_loss = 0
        self._failure: tuple[str, str | None] = OVERLOADED
        self.overloaded = threading.Event()
        """Set: every request is answered with 503."""

    def _open(self) -> None:
        # Imported here: whoever does not start a server does not need them.
        import waitress
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._moto = DomainDispatcherApplication(create_backend_app)
        server = waitress.create_server(
            self._respond, host="127.0.0.1", port=0, threads=THREADS, clear_untrusted_proxy_headers=False
        )
        self.port = int(server.effective_port)
        self._server = server
        thread = threading.Thread(target=self._serve, name="s3-server", daemon=True)
        thread.start()
        self._cleanup.callback(thread.join, 10)
        self._cleanup.callback(self._stopped.set)
        self._cleanup.callback(server.task_dispatcher.shutdown)

    def _serve(self) -> None:
        from waitress import wasyncore

        while not self._stopped.is_set():
            wasyncore.loop(timeout=POLL_S, map=self._server._map, count=1)
        wasyncore.close_all(self._server._map)

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, bucket: str) -> dict[str, str]:
        """The settings with which an installation stores its files here."""
        return {
            "OURVIDZ_STORAGE": "s3",
            "OURVIDZ_S3_BUCKET": bucket,
            "OURVIDZ_S3_ENDPOINT": self.url,
            "OURVIDZ_S3_ACCESS_KEY_ID": self.access_key,
            "OURVIDZ_S3_SECRET_ACCESS_KEY": self.secret_key,
        }

    def fail(
        self,
        count: int,
        method: str | None = None,
        *,
        after: int = 0,
        status: str = OVERLOADED[0],
        code: str | None = OVERLOADED[1],
    ) -> None:
        """Answer the next `count` requests but the first `after`, or those of them with this method, with an
        error."""
        with self._lock:
            self._failures, self._failing_method, self._failure = count, method, (status, code)
            self._answered_before_failure = after

    def heal(self) -> None:
        """Fail no more."""
        self.fail(0)
        self.lose_answers(0)
        self.overloaded.clear()

    def cut_connections(self) -> None:
        """Close every connection, also those with a request in progress."""
        self._server.trigger.pull_trigger(self._close_channels)

    def _close_channels(self) -> None:
        for channel in list(self._server.active_channels.values()):
            channel.handle_close()

    def stored_keys(self, bucket: str) -> list[str]:
        """The keys of all objects of a bucket, read past the API."""
        from moto.s3.models import s3_backends

        return list(s3_backends[ACCOUNT]["aws"].buckets[bucket].keys)

    def store(self, bucket: str, key: str, data: bytes) -> None:
        """Store an object past the API."""
        from moto.s3.models import s3_backends

        s3_backends[ACCOUNT]["aws"].put_object(bucket, key, data)

    def unfinished_uploads(self, bucket: str) -> int:
        """How many uploads in parts were neither completed nor aborted."""
        from moto.s3.models import s3_backends

        return len(s3_backends[ACCOUNT]["aws"].buckets[bucket].multiparts)

    def lose_answers(self, count: int, *, after: int = 0) -> None:
        """Carry out the next requests but the first `after`, and answer `count` of them with 503."""
        with self._lock:
            self._answered_before_loss, self._lost_answers = after, count

    @property
    def failures_left(self) -> int:
        """How many requests are still to be answered with 503."""
        return self._failures

    def _respond(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        with self._lock:
            method = environ["REQUEST_METHOD"]
            self.requests[method] += 1
            is_due = self._answered_before_failure == 0
            self._answered_before_failure -= not is_due
            fails = is_due and self._failures > 0 and self._failing_method in (None, method)
            self._failures -= fails
            failure = self._failure if fails else OVERLOADED
            loses = not fails and self._lost_answers > 0 and self._answered_before_loss == 0
            self._lost_answers -= loses
            self._answered_before_loss -= self._answered_before_loss > 0
        fails |= self.overloaded.is_set()
        body = environ["wsgi.input"].read()
        has_body = method != "HEAD"
        if fails:
            return _error(*failure, start_response, has_body=has_body)
        try:
            self._verify(environ, body)
        except Refused as refused:
            return _error("403 Forbidden", str(refused), start_response, has_body=has_body)
        # moto checks no signatures of URLs, and those of some paths wrongly: it need not look at all.
        environ["wsgi.input"] = io.BytesIO(body)
        # It decodes names once more than the server before it.
        environ["PATH_INFO"] = environ["PATH_INFO"].replace("%", "%25").replace("?", "%3F")
        if loses:
            list(self._moto(environ, lambda *_, **__: None))
            return _error(*OVERLOADED, start_response, has_body=has_body)
        response: Iterable[bytes] = self._moto(environ, start_response)
        return response

    def _verify(self, environ: Environ, body: bytes) -> None:
        path, _, query = environ["REQUEST_URI"].partition("?")
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
        }
        self.headers.update(headers)
        secrets = {self.access_key: self.secret_key}
        verify(environ["REQUEST_METHOD"], path, query, headers, body, secrets=secrets)


def _error(status: str, code: str | None, start_response: StartResponse, *, has_body: bool) -> list[bytes]:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    body = text.encode() if code is not None and has_body else b""
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]
