"""A Redis service of one primary, one replica and sentinels that fail over."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from campaigns.resource import Resource
from ourvidz.embedded_redis import HOST, find_server, free_port
from ourvidz.subprocesses import dying_with_parent

SERVICE = "ourvidz"
START_S = 20.0
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Node:
    """Where a process runs: its address, and the command that enters its host."""

    name: str
    address: str = HOST
    port: int = 0
    enter: tuple[str, ...] = ()
    password: str = ""

    @property
    def server_url(self) -> str:
        """The URL of a Redis server or sentinel here."""
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}{self.address}:{self.port}/0"


def local_node(name: str, password: str = "") -> Node:
    """A node on this host, with a free port."""
    return Node(name, port=free_port(), password=password)


class ReplicatedService(Resource):
    """Redis servers and sentinels as processes; use it as a context manager.

    The first of `servers` begins as the primary. `options` are those of the servers, `down_after_ms` how long
    a primary must be silent until the sentinels replace it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        servers: Sequence[Node],
        sentinels: Sequence[Node],
        options: Sequence[str] = (),
        down_after_ms: int = 1000,
    ) -> None:
        super().__init__()
        self.servers = servers
        self.sentinels = sentinels
        self._folder = folder
        self._options = options
        self._down_after_ms = down_after_ms
        self._binary = str(find_server(None))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """The URL of the service for `OURVIDZ_REDIS_URL`."""
        addresses = ",".join(f"{node.address}:{node.port}" for node in self.sentinels)
        login = f":{self.servers[0].password}@" if self.servers[0].password else ""
        password = self.sentinels[0].password if self.sentinels else ""
        options = f"?sentinel_password={password}" if password else ""
        return f"redis+sentinel://{login}{addresses}/{SERVICE}/0{options}"

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._cleanup.callback(self._kill_all)
        for node in self.servers:
            self.start_server(node)
        for node in self.sentinels:
            self._start_sentinel(node)
        self._wait_until(self.is_complete, "the sentinels to find all servers and each other")

    def start_server(self, node: Node) -> None:
        """Start a server on its data: as the primary, or as a replica of the current primary."""
        folder = self._folder / node.name
        folder.mkdir(exist_ok=True)
        arguments = ["--port", str(node.port), "--bind", node.address, "--dir", str(folder)]
        arguments += ["--protected-mode", "no", "--save", "", "--repl-diskless-sync-delay", "0"]
        if node.password:
            arguments += ["--requirepass", node.password, "--masterauth", node.password]
        has_sentinels = any(sentinel.name in self._processes for sentinel in self.sentinels)
        primary = self.primary() if has_sentinels else self.servers[0]
        if node != primary:
            arguments += ["--replicaof", primary.address, str(primary.port)]
        self._spawn(node, [self._binary, *arguments, *self._options])
        self._wait_until(lambda: self._ask(node.server_url, "PING") is True, f"the server {node.name}")

    def kill(self, node: Node) -> None:
        """Kill a server or sentinel without a shutdown."""
        process = self._processes.get(node.name)
        if process is not None:
            process.kill()
            process.wait()

    def is_running(self, node: Node) -> bool:
        """Whether the process of a node runs."""
        return self._processes[node.name].poll() is None

    def signal(self, node: Node, number: signal.Signals) -> None:
        """Send a signal to a server or sentinel, for instance to freeze it."""
        self._processes[node.name].send_signal(number)

    def primary(self) -> Node:
        """The primary that the sentinels name. Raises `TimeoutError` when none answers."""
        primary: Node = self._wait_until(self._named_primary, "a sentinel that names the primary")
        return primary

    def wait_for_failover(self, former: Node, *, within_s: float = START_S) -> Node:
        """Wait until another server than `former` is the primary and takes writes; return it."""

        def replaced() -> Node | None:
            node = self._named_primary()
            if node is None or node == former:
                return None
            role = self._ask(node.server_url, "ROLE")
            return node if role and role[0] in (b"master", "master") else None

        node: Node = self._wait_until(replaced, "the failover", within_s=within_s)
        return node

    def logs(self) -> list[Path]:
        """The files to which the processes write."""
        return sorted(self._folder.glob("*.log"))

    def _named_primary(self) -> Node | None:
        for sentinel in self.sentinels:
            answer = self._ask(sentinel.server_url, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            if answer:
                address, port = (part.decode() if isinstance(part, bytes) else part for part in answer)
                return next(
                    node for node in self.servers if (node.address, node.port) == (address, int(port))
                )
        return None

    def is_complete(self) -> bool:
        """Whether every sentinel sees all replicas connected to their primary, and all other sentinels."""
        for sentinel in self.sentinels:
            replicas = self._ask(sentinel.server_url, "SENTINEL", "REPLICAS", SERVICE)
            others = self._ask(sentinel.server_url, "SENTINEL", "SENTINELS", SERVICE)
            if replicas is None or len(replicas) < len(self.servers) - 1:
                return False
            if others is None or len(others) < len(self.sentinels) - 1:
                return False
            if not all("master-link-status" in str(one) and "'ok'" in str(one) for one in replicas):
                return False
        return True

    def _ask(self, url: str, *command: str) -> Any:
        """The answer to a command, None without one. In a process of the campaign's own network namespace."""
        try:
            with redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1) as client:
                return client.execute_command(*command)
        except redis.RedisError:
            return None

    def _start_sentinel(self, node: Node) -> None:
        folder = self._folder / node.name
        folder.mkdir(exist_ok=True)
        primary = self.servers[0]
        quorum = len(self.sentinels) // 2 + 1
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {node.port}\nbind {node.address}\nprotected-mode no\ndir {folder}\n"
            f"sentinel monitor {SERVICE} {primary.address} {primary.port} {quorum}\n"
            f"sentinel down-after-milliseconds {SERVICE} {self._down_after_ms}\n"
            f"sentinel failover-timeout {SERVICE} 4000\n"
            + (f"sentinel auth-pass {SERVICE} {primary.password}\n" if primary.password else "")
            + (
                f"requirepass {node.password}\nsentinel sentinel-pass {node.password}\n"
                if node.password
                else ""
            )
        )
        self._spawn(node, [self._binary, str(config), "--sentinel"])

    def _spawn(self, node: Node, command: Sequence[str]) -> None:
        with (self._folder / f"{node.name}.log").open("ab") as log:
            self._processes[node.name] = subprocess.Popen(
                (*node.enter, *command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=dying_with_parent(signal.SIGKILL),
            )

    def _kill_all(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _wait_until(self, read: Callable[[], Any], what: str, within_s: float = START_S) -> Any:
        deadline = time.monotonic() + within_s
        while not (value := read()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {within_s:g} s for {what}\n{self.log_tails()}")
            time.sleep(POLL_S)
        return value
