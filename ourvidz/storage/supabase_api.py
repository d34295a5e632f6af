"""Requests to the Storage API of a Supabase project, with one service key.

The API answers most errors with status 400 and the real status as a string in the body:
`{"statusCode": "409", "error": "Duplicate", …}`. Resumable uploads and gateways answer with the real status.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ourvidz import log
from ourvidz.errors import StorageError
from ourvidz.net.connector import Deadline
from ourvidz.net.egress_policy import EgressPolicy
from ourvidz.net.pool import ConnectionPool
from ourvidz.net.transport import RequestError
from ourvidz.net.urls import origin, parse_http_url
from ourvidz.service_key import key_headers

REQUEST_S = 10.0
"""Deadline of a request without a file, in seconds."""
TRANSFER_S = 60.0
"""Deadline of a request with a file of unknown size, or that lets the server copy one."""
SLOWEST_BYTES_S = 100_000
"""Bytes a second below which an upload is given up."""
PAUSES_S = (0.25, 1.0)
"""Longest pauses before a request is repeated, in seconds."""
BUCKET_MISSING = "Bucket not found"

_REPEATED = frozenset({408, 423, 425, 429, 500, 502, 503, 504, 544})
_EXPECTED = frozenset({404, 409})
_DIRECT_HOST_SUFFIXES = (".supabase.co", ".supabase.in", ".supabase.red")

T = TypeVar("T")
_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its real status. Header names are lower case. `status` 0: there was none, and `failure`
    says why."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    failure: str = ""

    @property
    def ok(self) -> bool:
        """Whether the request succeeded."""
        return 200 <= self.status < 300

    @property
    def reason(self) -> str:
        """Why the request failed: a phrase without anything that the server wrote."""
        if self.status == 0:
            return self.failure
        if self.jwt_required:
            return "the storage asks for a key that is a JWT, such as the legacy service_role key"
        if self.key_refused:
            return f"the storage refuses the service key ({self.status})"
        if self.status == 413:
            return "it is larger than the bucket allows"
        if self.bucket_missing:
            return "its bucket does not exist; `ourvidz storage init` creates it"
        return f"the storage answered {self.status}"

    @property
    def key_refused(self) -> bool:
        """Whether the key, and not the request, is wrong."""
        return self.status in (401, 403) or self.jwt_required

    @property
    def jwt_required(self) -> bool:
        """Whether the key was not sent as a bearer token and has to be: gateways of hosted projects translate
        a secret key for the storage, but not every gateway does."""
        return self.status == 400 and "'authorization'" in str(_member(self.body, "message"))

    @property
    def bucket_missing(self) -> bool:
        """Whether the bucket, and not the file, does not exist."""
        text = self.body.decode("utf-8", "replace").strip()
        return self.status == 404 and BUCKET_MISSING in (text, _member(self.body, "message"))

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed in a moment."""
        return self.status == 0 or self.status in _REPEATED

    def read(self, read: Callable[[Any], T]) -> T:
        """What `read` makes of the JSON body. Raises `StorageError` if the body has another form."""
        try:
            return read(json.loads(self.body))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise StorageError("The storage sent an answer whose form is not known.") from None


class SupabaseAPI:
    """Sends requests to `{url}/storage/v1`. Safe to share between threads.

    `url` is the project's, and no other host is called, except the project's storage host for uploads.
    `sleep` pauses before a repetition.
    """

    def __init__(self, url: str, key: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.base = f"{url.rstrip('/')}/storage/v1"
        self.upload_base = f"{direct_url(url).rstrip('/')}/storage/v1"
        self._headers = key_headers(key)
        self._sleep = sleep
        origins = [origin(base) for base in (self.base, self.upload_base)]
        # An operator has set them, so they may have private addresses.
        policy = EgressPolicy([each.netloc for each in origins if each is not None])
        self._pool = ConnectionPool(connector=policy)

    def send(
        self,
        method: str,
        path: str,
        *,
        document: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_S,
        repeat: bool = True,
        resend: bool = True,
        upload: bool = False,
        at_most: int | None = None,
    ) -> Answer:
        """Send a request with a JSON `document` or a `body`, and read the answer: the whole, or the first
        `at_most` bytes and the rest of the chunk that has them.

        `repeat`: whether it is sent up to three times if there was no answer, or a temporary error. `resend`:
        whether it is sent once more if the server had closed a kept connection. `upload`: it goes to the
        storage host. Raises nothing: see `Answer.status`.
        """
        sent = dict(headers or {})
        if document is not None:
            body, sent["Content-Type"] = json.dumps(document).encode(), "application/json"
        url = (self.upload_base if upload else self.base) + path
        answer = self._send(method, url, body, sent, timeout_s, resend, at_most)
        for pause_s in PAUSES_S if repeat else ():
            if not answer.temporary:
                break
            self.pause(pause_s)
            answer = self._send(method, url, body, sent, timeout_s, resend, at_most)
        if not answer.ok and answer.status not in _EXPECTED:
            _log.warning(
                "storage_request_failed",
                method=method,
                path=path,
                status=answer.status,
                error=answer.failure or str(_member(answer.body, "error"))[:80],
            )
        return answer

    def leave_upload_host(self) -> bool:
        """Send uploads to the host of all other requests from now on. Returns whether that is another one."""
        before, self.upload_base = self.upload_base, self.base
        return before != self.base

    def pause(self, at_most_s: float) -> None:
        """Wait before a repetition, for a random time between half of `at_most_s` and all of it."""
        self._sleep(at_most_s * random.uniform(0.5, 1.0))

    def _send(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
        resend: bool,
        at_most: int | None,
    ) -> Answer:
        parsed = parse_http_url(url)
        if parsed is None:
            return Answer(0, failure="the URL of the storage cannot be called")
        all_headers = {**headers, **self._headers}
        deadline = Deadline.after(timeout_s)
        try:
            with self._pool.open_response(
                method, parsed, headers=all_headers, body=body, deadline=deadline, resend=resend
            ) as response:
                received = bytearray()
                for chunk in response.iter_bytes():
                    received += chunk
                    if at_most is not None and len(received) >= at_most:
                        break
                content = bytes(received)
                return Answer(_real_status(response.status, content), response.headers, content)
        except RequestError as error:
            return Answer(0, failure=error.reason)


def upload_s(size: int) -> float:
    """Deadline of a request that sends so many bytes, in seconds."""
    return REQUEST_S + size / SLOWEST_BYTES_S


def direct_url(url: str) -> str:
    """The URL of a project's storage host: `https://PROJECT.storage.supabase.co` for a hosted project, which
    takes large uploads without a gateway; else `url` itself."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    for suffix in _DIRECT_HOST_SUFFIXES:
        project = host.removesuffix(suffix)
        if project != host and "." not in project:
            return f"{scheme}://{project}.storage{suffix}{slash}{path}"
    return url


def _real_status(status: int, body: bytes) -> int:
    """The status that the body of an error names, else the one of the answer."""
    named = _member(body, "statusCode") if status >= 400 else None
    number = int(named) if isinstance(named, int | str) and str(named).isdecimal() else 0
    return number if 400 <= number <= 599 else status


def _member(body: bytes, name: str) -> Any:
    """A member of a JSON object; None if the body is none."""
    try:
        document = json.loads(body)
    except ValueError:
        return None
    return document.get(name) if isinstance(document, dict) else None
