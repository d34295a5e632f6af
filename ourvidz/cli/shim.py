"""A small client of the shim's HTTP routes."""

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

CONNECT_S = 5.0
READ_S = 30.0
SILENCE_S = 60.0
"""An event stream that says nothing for this long, not even a keep-alive, is opened again."""
AGAIN_S = 0.5
ENDED = frozenset({"completed", "failed", "cancelled"})


class Refused(click.ClickException):
    """The shim said no, or did not answer. One line, exit status 1."""

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job's stream."""

    id: str | None
    kind: str
    data: dict[str, Any]


class Shim:
    """One shim. Every failure is a `Refused`."""

    def __init__(self, url: str, key: str | None, *, read_s: float = READ_S) -> None:
        self.url = url.rstrip("/")
        self._read_s = read_s
        self._session = requests.Session()
        # A proxy for the outside world does not know this machine's loopback.
        self._session.trust_env = False
        if key:
            self._session.headers["Authorization"] = f"Bearer {key}"

    def get(self, path: str, **query: Any) -> Any:
        """Read a JSON document."""
        return self._ask(
            "GET", path, params={name: value for name, value in query.items() if value is not None}
        )

    def post(self, path: str, document: Any = None) -> Any:
        """Send a JSON document, read one back."""
        return self._ask("POST", path, json=document)

    def delete(self, path: str) -> Any:
        """Delete what stands there."""
        return self._ask("DELETE", path)

    def fetch(self, url: str) -> bytes:
        """The bytes at a URL of the shim."""
        return bytes(self._send("GET", url if "://" in url else self.url + url).content)

    def ready(self) -> bool:
        """Whether the shim, the broker behind it and a worker answer."""
        try:
            self.get("/health/ready")
        except Refused:
            return False
        return True

    def job(self, job_id: str) -> dict[str, Any]:
        """How a job stands."""
        found: dict[str, Any] = self.get(f"/jobs/{quote(job_id, safe='')}")
        return found

    def events(self, job_id: str) -> Iterator[Event]:
        """What happens to a job, until it is over; a stream that breaks off is taken up where it ended."""
        last: str | None = None
        while True:
            try:
                for event in self._stream(job_id, last):
                    last = event.id or last
                    yield event
                    if event.kind == "done":
                        return
            except requests.RequestException:
                click.echo("the event stream broke off; trying again", err=True)
            except LineTooLong as failed:
                raise Refused(f"{self.url}: {failed}") from None
            if self.job(job_id)["status"] in ENDED:
                return
            time.sleep(AGAIN_S)

    def _stream(self, job_id: str, last: str | None) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        url = f"{self.url}/jobs/{quote(job_id, safe='')}/events"
        with self._session.get(url, headers=headers, stream=True, timeout=(CONNECT_S, SILENCE_S)) as answer:
            _check(answer)
            for event in parse_events(answer.iter_content(chunk_size=1)):
                yield Event(event.id, event.event, json.loads(event.data))

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        answer = self._send(method, self.url + path, **content)
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            raise Refused(f"{self.url} is no OurVidz shim: {path} answered no JSON") from None

    def _send(self, method: str, url: str, **content: Any) -> requests.Response:
        try:
            answer = self._session.request(method, url, timeout=(CONNECT_S, self._read_s), **content)
        except requests.ConnectionError:
            raise Refused(f"nothing answers at {self.url}; is `ourvidz up` running?") from None
        except requests.RequestException as failed:
            raise Refused(f"{self.url}: {failed}") from None
        _check(answer)
        return answer


def connect(url: str | None, key: str | None) -> Shim:
    """The shim that is meant: the one named, `OURVIDZ_URL`, the running `ourvidz up`, or the usual port."""
    chosen = settings()
    running = StateDir(chosen.state_dir).read_ready() or {}
    found = url or chosen.shim_url or running.get("shim") or f"http://127.0.0.1:{chosen.ports[0]}"
    # The key of the local stack is not for a stranger.
    own = running.get("api_key") if found == running.get("shim") else None
    return Shim(found, key or chosen.shim_key or own)


def _check(answer: requests.Response) -> None:
    if answer.ok:
        return
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    raise Refused(_line(answer, problem), status=answer.status_code, code=problem.get("code"))


def _line(answer: requests.Response, problem: dict[str, Any]) -> str:
    detail = problem.get("detail") or problem.get("error") or problem.get("title") or answer.reason
    code = problem.get("code") or answer.status_code
    return f"{code}: {detail}"
