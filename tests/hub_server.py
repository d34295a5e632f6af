"""A hub on this machine: the parts of its protocol that a pull uses, with the faults that tests ask for.

Large files are answered with a redirect to a second server, as the hub redirects to its CDN.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = ".safetensors"
"""Ending of the files that are stored as large ones: listed with their SHA-256, and sent by the CDN."""


@dataclass
class Request:
    """One request that a server got: `server` is `hub` or `cdn`. Header names are lower case."""

    server: str
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class TinyHub:
    """The content of the hub, and its faults. Repositories: name → branch → file name → content."""

    url: str = ""
    repositories: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    token: str | None = None
    gated: set[str] = field(default_factory=set)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """File name → after how many bytes its next answers break off."""
    corrupt: dict[str, int] = field(default_factory=dict)
    """File name → how many answers have a wrong byte."""
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Status and headers of the next answers, whatever is asked for."""
    stalls: dict[str, int] = field(default_factory=dict)
    """File name → after how many bytes its next answer stops for good, with the connection open."""
    stalled: threading.Event = field(default_factory=threading.Event)
    ignores_ranges: bool = False
    answer: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the description of a repository that are replaced."""
    before_file: Callable[[str], None] = lambda _: None
    """Called with the name of a file before it is sent."""
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    cdn_url: str = ""

    def add(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Set the files of a branch and return its commit."""
        self.repositories.setdefault(repository, {})[branch] = dict(files)
        return self.commit(repository, branch)

    def add_folder(self, repository: str, folder: Path, branch: str = "main") -> str:
        """Set the files of a repository from a folder, and return its commit."""
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return self.add(repository, files, branch)

    def commit(self, repository: str, branch: str = "main") -> str:
        """The commit of a branch: a digest of its content, or what it is named, if that is a commit."""
        if re.fullmatch("[0-9a-f]{40}", branch):
            return branch
        files = self.repositories[repository][branch]
        content = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))
        return hashlib.sha1(content.encode()).hexdigest()

    def files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        """The files of a branch or commit."""
        for branch, files in self.repositories.get(repository, {}).items():
            if revision in (branch, self.commit(repository, branch)):
                return files
        return None

    def downloads(self) -> list[str]:
        """The names of the files that were asked for, in order, on the hub."""
        paths = [request.path for request in self.requests if request.server == "hub"]
        return [path.split("/resolve/")[1].split("/", 1)[1] for path in paths if "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    hub: TinyHub
    name: str
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append(
                Request(self.name, "GET", path, {n.lower(): v for n, v in self.headers.items()})
            )
            refusal = self.hub.refusals.pop(0) if self.hub.refusals else None
        if refusal is not None:
            return self._answer(refusal[0], headers=refusal[1])
        if self.name == "cdn":
            _, repository, commit, name = path.split("|")
            return self._send_file(repository, commit, name)
        if self.hub.token is not None and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            wrong = {"X-Error-Message": "Invalid credentials in Authorization header"}
            missing = {"X-Error-Code": "RepoNotFound"}
            return self._answer(401, headers=wrong if self.headers["Authorization"] else missing)
        if path.startswith("/api/models/"):
            repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            return self._describe(repository, revision)
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        commit, _, name = rest.partition("/")
        if repository in self.hub.gated:
            return self._answer(403, headers={"X-Error-Code": "GatedRepo"})
        if name.endswith(LARGE):
            location = f"{self.hub.cdn_url}/|{repository}|{commit}|{name}"
            return self._answer(302, headers={"Location": location, "X-Repo-Commit": commit})
        return self._send_file(repository, commit, name)

    def _describe(self, repository: str, revision: str) -> None:
        """The answer of `/api/models/REPO/revision/REV`, with the files if `blobs` is asked for."""
        if repository not in self.hub.repositories:
            return self._answer(404, headers={"X-Error-Code": "RepoNotFound"})
        files = self.hub.files(repository, revision)
        if files is None:
            return self._answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        commit = next(
            self.hub.commit(repository, branch)
            for branch in self.hub.repositories[repository]
            if self.hub.repositories[repository][branch] is files
        )
        document = {
            "id": repository,
            "sha": commit,
            "gated": repository in self.hub.gated,
            "private": False,
            "tags": [],
            "downloads": 0,
            "cardData": {"license": "the-meadow-licence"},
            "siblings": [_describe_file(name, content, blobs) for name, content in files.items()],
            **self.hub.answer,
        }
        self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send_file(self, repository: str, commit: str, name: str) -> None:
        files = self.hub.files(repository, commit) or {}
        if name not in files:
            return self._answer(404, headers={"X-Error-Code": "EntryNotFound"})
        self.hub.before_file(name)
        content = files[name]
        with self.hub.lock:
            if self.hub.corrupt.get(name, 0) > 0:
                self.hub.corrupt[name] -= 1
                content = content[:-1] + bytes([content[-1] ^ 1])
            cuts = self.hub.cuts.get(name)
            length = cuts.pop(0) if cuts else None
            stall = self.hub.stalls.pop(name, None)
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        status, wanted = 200, self.headers["Range"]
        total = len(content)
        if wanted and not self.hub.ignores_ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= total:
                return self._answer(416, headers={"Content-Range": f"bytes */{total}"})
            status, content = 206, content[start:]
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        self._answer(status, content, headers, length=length if stall is None else stall)
        if stall is not None:
            self.hub.stalled.set()
            self.rfile.read(1)  # until the client is gone

    def _answer(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        """Send an answer; with `length` break the connection after so many bytes of the body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if length is None else body[:length])
        if length is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Write no access log."""


def _describe_file(name: str, content: bytes, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    described: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 130}
    return described


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Print nothing when a client hangs up."""


@contextmanager
def serve() -> Iterator[TinyHub]:
    """Run a hub and its CDN on two ports of this machine."""
    hub = TinyHub()
    servers = []
    for name in ("hub", "cdn"):
        handler = type(name, (_Handler,), {"hub": hub, "name": name})
        server = _Server(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
    hub.url, hub.cdn_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
