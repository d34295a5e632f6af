"""An HTTP client of the shim, for the commands."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import click
import requests

from ourvidz.cli.state import StateDir
from ourvidz.net.sse import LineTooLong, parse_events
from ourvidz.settings import settings
from ourvidz.settings.kinds import reveal

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
STREAM_TIMEOUT_S = 60.0
"""An event stream is opened again when nothing arrives for this long, not even a keep-alive comment."""
RECONNECT_DELAY_S = 0.5
TERMINAL_STATUSES = frozenset({"completed", "failed", "cancelled"})


class ShimError(click.ClickException):
    """The shim refused a request, or did not answer. click prints one line and exits with status 1.

    status: the HTTP status, None without a response. code: the error code of the problem document.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job's stream. `kind` is its SSE type, `id` resumes the stream after it."""

    id: str | None
    kind: str
    data: dict[str, Any]


class Shim:
    """A client of one shim. Paths are relative to its URL. Every method raises `ShimError` on failure."""

    def __init__(self, url: str, key: str | None, *, read_timeout_s: float = READ_TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._read_timeout_s = read_timeout_s
        self._session = requests.Session()
        # No proxy from the environment: it cannot reach the loopback of this machine.
        self._session.trust_env = False
        if key:
            self._session.headers["Authorization"] = f"Bearer {key}"

    def get(self, path: str, **query: Any) -> Any:
        """GET a JSON document. Query parameters that are None are left out."""
        parameters = {name: value for name, value in query.items() if value is not None}
        return self._request_json("GET", path, params=parameters)

    def post(self, path: str, document: Any = None) -> Any:
        """POST a JSON document; returns the JSON response."""
        return self._request_json("POST", path, json=document)

    def upload_reference(self, data: bytes, *, user_id: str) -> str:
        """Upload an image file for jobs of a user; returns the storage path that they name."""
        headers = {"Content-Type": "application/octet-stream"}
        answer = self._request_json(
            "POST", "/references", params={"user_id": user_id}, data=data, headers=headers
        )
        return str(answer["path"])

    def delete(self, path: str) -> Any:
        """DELETE a resource; returns the JSON response, None if it is empty."""
        return self._request_json("DELETE", path)

    def fetch(self, url: str) -> bytes:
        """GET the bytes at a path of the shim, or at an absolute URL."""
        return bytes(self._request("GET", url if "://" in url else self.url + url).content)

    def is_ready(self) -> bool:
        """Whether the shim, its Redis server and a worker are ready (`/health/ready`)."""
        try:
            self.get("/health/ready")
        except ShimError:
            return False
        return True

    def has_page(self, path: str) -> bool:
        """Whether the shim serves something at a path: it answers with another status than 404."""
        try:
            self.fetch(path)
        except ShimError as error:
            return error.status not in (None, 404)
        return True

    def job(self, job_id: str) -> dict[str, Any]:
        """The document of a job."""
        document: dict[str, Any] = self.get(f"/jobs/{quote(job_id, safe='')}")
        return document

    def events(self, job_id: str) -> Iterator[Event]:
        """Yield the events of a job until it ends. A broken stream is resumed after the last event."""
        last_id: str | None = None
        while True:
            try:
                for event in self._stream(job_id, last_id):
                    last_id = event.id or last_id
                    yield event
                    if event.kind == "done":
                        return
            except requests.RequestException:
                click.echo("the event stream broke off; trying again", err=True)
            except LineTooLong as error:
                raise ShimError(f"{self.url}: {error}") from None
            if self.job(job_id)["status"] in TERMINAL_STATUSES:
                return
            time.sleep(RECONNECT_DELAY_S)

    def _stream(self, job_id: str, last_id: str | None) -> Iterator[Event]:
        """Yield the events of a job's stream after `last_id` until the response ends."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
        url = f"{self.url}/jobs/{quote(job_id, safe='')}/events"
        timeout = (CONNECT_TIMEOUT_S, STREAM_TIMEOUT_S)
        with self._session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            _raise_for_status(response)
            for event in parse_events(response.iter_content(chunk_size=1)):
                yield Event(event.id, event.event, json.loads(event.data))

    def _request_json(self, method: str, path: str, **content: Any) -> Any:
        """Send a request and return its JSON; None for an empty response. Raises `ShimError`."""
        response = self._request(method, self.url + path, **content)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise ShimError(f"{self.url} is no OurVidz shim: {path} answered no JSON") from None

    def _request(self, method: str, url: str, **content: Any) -> requests.Response:
        """Send a request. Raises `ShimError` for a failed connection and for an error status."""
        timeout = (CONNECT_TIMEOUT_S, self._read_timeout_s)
        try:
            response = self._session.request(method, url, timeout=timeout, **content)
        except requests.ConnectionError:
            hint = "is `ourvidz up` running, and OURVIDZ_STATE_DIR its directory?"
            raise ShimError(f"nothing answers at {self.url}; {hint}") from None
        except requests.RequestException as error:
            raise ShimError(f"{self.url}: {error}") from None
        _raise_for_status(response)
        return response


def connect(url: str | None, key: str | None) -> Shim:
    """A client of the shim at `url`, else `OURVIDZ_URL`, the running `ourvidz up`, or the default port.

    The API key of the running stack is sent only to that stack.
    """
    current = settings()
    running = StateDir(current.state_dir).read_ready() or {}
    shim_url = url or current.shim_url or running.get("shim") or f"http://127.0.0.1:{current.ports[0]}"
    stack_key = running.get("api_key") if shim_url == running.get("shim") else None
    return Shim(shim_url, key or reveal(current.shim_key) or stack_key)


def _raise_for_status(response: requests.Response) -> None:
    if response.ok:
        return
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    message = _format_problem(response, problem)
    raise ShimError(message, status=response.status_code, code=problem.get("code"))


def _format_problem(response: requests.Response, problem: dict[str, Any]) -> str:
    """`CODE: detail` of a problem document, with the HTTP status and reason in their absence."""
    detail = problem.get("detail") or problem.get("error") or problem.get("title") or response.reason
    code = problem.get("code") or response.status_code
    return f"{code}: {detail}"
