"""Which hosts may be called, and connections to those alone.

A name is looked up once, every address it has is checked, and the checked ones are connected to: there is no
second look-up that could answer otherwise. What is written in a URL is checked before that, but decides
nothing: the client that connects may read it differently.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import replace
from ipaddress import ip_network
from typing import TypeVar

from ssrfguard import DEFAULT_DENIED, AddressTable, Block, Policy, Resolver, connect, resolve
from ssrfguard import Reach as Of
from ssrfguard.errors import BlockedAddressError, BlockedURLError, SSRFGuardError

from ourvidz import log
from ourvidz.net.client import Origin, Unreachable, origin

NOT_PLAIN = "it is not a plain http(s) URL"
NUMBER_AS_HOST = "its host ends in a number, which is an address in disguise"

_OWN = tuple(
    map(
        ip_network,
        ("10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"),
    )
)
"""Where an operator's own hosts are. Link-local addresses are not among them: cloud metadata lives there."""

_TABLE: tuple[tuple[str, Of, str], ...] = (
    # IANA has given out nothing but 2000::/3, so the rest of IPv6 is nobody's until it says otherwise.
    ("::/0", Of.DENIED, "outside of global unicast"),
    ("2000::/3", Of.PERMITTED, "global unicast"),
    # An IPv4 address in disguise. Only NAT64 (decoded by the library) is how real networks reach IPv4.
    ("::/96", Of.DENIED, "IPv4-compatible"),
    ("::ffff:0:0/96", Of.DENIED, "IPv4-mapped"),
    ("2001::/32", Of.DENIED, "Teredo"),
    ("2002::/16", Of.DENIED, "6to4"),
    ("168.63.129.16/32", Of.DENIED, "the host services of a cloud, at a public address"),
)
_NUMBER = re.compile(r"(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?\Z")

_log = log.get(__name__)
_T = TypeVar("_T")


class Reach:
    """Public addresses at the ports 80 and 443, and what an operator allows besides. An `Opener`.

    `hosts` (`host`, any port, or `host:port`) may have private addresses too; addresses in `networks`
    (`10.1.0.0/16`) may be called as if they were public. `resolver` stands in for `socket.getaddrinfo`. Safe
    to share. `ValueError` for a network that is none.
    """

    def __init__(
        self,
        hosts: Collection[str] = (),
        networks: Collection[str] = (),
        *,
        resolver: Resolver | None = None,
    ) -> None:
        ours = tuple(ip_network(entry) for entry in networks)
        self._hosts = tuple(hosts)
        self._strangers = Policy(denied_networks=_table(), allowed_networks=ours)
        self._named = replace(self._strangers, allowed_networks=ours + _OWN)
        self._resolver = resolver

    def refusal(self, url: str) -> str | None:
        """Why a URL may not be called, as far as its text tells, or None. For our log: it may name
        addresses."""
        where = origin(url)
        if where is None:
            return NOT_PLAIN
        try:
            self._policy(where).check_url(url)
        except (BlockedURLError, BlockedAddressError) as blocked:
            return blocked.reason
        return NUMBER_AS_HOST if _disguised(where) else None

    def open(self, host: str, port: int, *, connect_s: float, until: float) -> socket.socket:
        """A connection to one of the addresses of `host`, made by `until` (monotonic seconds). Raises
        `Unreachable`, or `OSError` when there is no such host, nobody is there, or the time is over."""
        where = Origin("http", f"[{host}]" if ":" in host else host.lower(), port)
        policy = self._policy(where)
        url = f"http://{where.netloc}/"
        if refused := self.refusal(url):
            raise _unreachable(where, refused)
        try:
            target = policy.check_url(url)
            addresses = _by(until, lambda: resolve(target, policy=policy, resolver=self._resolver))
            tries = min(len(addresses), policy.max_connection_attempts)
            made = connect(
                addresses,
                policy=policy,
                timeout=min(connect_s, _left_s(until) / tries),
                socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            )
        except SSRFGuardError as blocked:
            raise _unreachable(where, str(blocked)) from blocked
        # What is left is for the TLS handshake, which comes next.
        made.settimeout(_left_s(until))
        return made

    def _policy(self, where: Origin) -> Policy:
        if where.is_among(self._hosts):
            return replace(self._named, allowed_ports=frozenset({where.port}))
        return self._strangers


def _table() -> AddressTable:
    ours = {ip_network(net): Block(ip_network(net), name, "ours", of) for net, of, name in _TABLE}
    return AddressTable((*(b for b in DEFAULT_DENIED.blocks if b.network not in ours), *ours.values()))


def _disguised(where: Origin) -> bool:
    """Whether a name is what C libraries read as an IPv4 address (0x7f.1); addresses as such are not."""
    last = where.host.rstrip(".").rpartition(".")[2]
    plain = re.fullmatch(r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}", where.host)
    return not where.host.startswith("[") and not plain and bool(_NUMBER.match(last))


def _unreachable(where: Origin, reason: str) -> Unreachable:
    _log.warning("host_refused", host=where.host, port=where.port, reason=reason)
    return Unreachable(reason)


def _left_s(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the deadline has passed")
    return left_s


def _by(until: float, ask: Callable[[], _T]) -> _T:
    """What `ask` answers, if it does so in time. `getaddrinfo` takes no time limit: a thread that it holds
    is left to end when the system's resolver gives up."""
    answer: Future[_T] = Future()

    def wait_for_it() -> None:
        try:
            answer.set_result(ask())
        except Exception as failed:  # noqa: BLE001  raised again by the one who waits
            answer.set_exception(failed)

    threading.Thread(target=wait_for_it, name="look-up", daemon=True).start()
    return answer.result(timeout=_left_s(until))
