"""Hosts in network namespaces whose links can be cut; Linux only, as root."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess

from campaigns.resource import Resource

NOBODY = "02:00:00:00:00:99"
"""A hardware address that no interface has: what is sent there vanishes without an error."""
OUTSIDE = "outside"
"""The host of the campaign itself."""


_generations = itertools.count()


class Unsupported(Exception):
    """Namespaces cannot be made here; the message is the reason."""


class Network(Resource):
    """Some hosts on one switch, and the campaign's own host beside them; use it as a context manager.

    A link is cut by giving its sender a wrong hardware address for the receiver, so each direction can be
    cut alone, and established connections notice nothing but silence. Raises `Unsupported`.
    """

    def __init__(self, hosts: tuple[str, ...]) -> None:
        super().__init__()
        self.hosts = hosts
        number = os.getpid()
        # The kernel removes a namespace some time after its last process has ended, and its ports with it.
        self._label = f"ov{number % 10000}{next(_generations)}"
        # Different campaigns on one machine use different networks.
        network = f"10.{200 + number % 50}.{number // 50 % 250}"
        self._addresses = {name: f"{network}.{last}" for last, name in enumerate((OUTSIDE, *hosts), start=1)}
        self._cuts: set[tuple[str, str]] = set()

    def _open(self) -> None:
        reason = unsupported_reason()
        if reason is not None:
            raise Unsupported(reason)
        self._build()

    def address(self, host: str) -> str:
        """The address of a host."""
        return self._addresses[host]

    def enter(self, host: str) -> tuple[str, ...]:
        """The beginning of a command that runs on a host."""
        return () if host == OUTSIDE else ("ip", "netns", "exec", self._namespace(host))

    def cut(self, sender: str, receiver: str) -> None:
        """Let everything that one host sends to another vanish."""
        device = self._device(sender)
        address = self._addresses[receiver]
        _ip(
            *self._at(sender),
            "neigh",
            "replace",
            address,
            "lladdr",
            NOBODY,
            "dev",
            device,
            "nud",
            "permanent",
        )
        self._cuts.add((sender, receiver))

    def heal(self) -> None:
        """Restore every link."""
        for sender, receiver in self._cuts:
            _ip(*self._at(sender), "neigh", "del", self._addresses[receiver], "dev", self._device(sender))
        self._cuts.clear()

    def _build(self) -> None:
        switch = self._device(OUTSIDE)
        _ip("link", "add", switch, "type", "bridge")
        self._cleanup.callback(_ip, "link", "del", switch)
        _ip("addr", "add", f"{self._addresses[OUTSIDE]}/24", "dev", switch)
        _ip("link", "set", switch, "up")
        for number, host in enumerate(self.hosts):
            namespace, port = self._namespace(host), f"{self._label}p{number}"
            _ip("netns", "add", namespace)
            self._cleanup.callback(_ip, "netns", "del", namespace)
            _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("link", "set", port, "master", switch, "up")
            _ip("-n", namespace, "addr", "add", f"{self._addresses[host]}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")
            _ip("-n", namespace, "link", "set", "lo", "up")

    def _namespace(self, host: str) -> str:
        return f"{self._label}-{host}"

    def _device(self, host: str) -> str:
        return f"{self._label}br" if host == OUTSIDE else "eth0"

    def _at(self, host: str) -> tuple[str, ...]:
        return () if host == OUTSIDE else ("-n", self._namespace(host))


def unsupported_reason() -> str | None:
    """Why no namespaces can be made here; None if they can."""
    if shutil.which("ip") is None:
        return "the command `ip` (iproute2) is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"ov{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "probe", "type", "bridge")
        finally:
            _ip("netns", "del", name)
    except OSError as error:
        return str(error)
    return None


def _ip(*arguments: str) -> None:
    run = subprocess.run(("ip", *arguments), capture_output=True, text=True)
    if run.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {run.stderr.strip()}")
