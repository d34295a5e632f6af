"""The egress policy: which hosts and addresses may be called, and connections to those alone.

A name is resolved once, every address it has is checked, and the connection goes to one of the checked
addresses: a name server cannot answer a second look-up differently. The text of a URL is checked before that
only to save the look-up.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection
from dataclasses import replace
from ipaddress import ip_network

from ssrfguard import DEFAULT_DENIED, AddressTable, Block, Policy, Reach, Resolver, connect, resolve
from ssrfguard.errors import BlockedAddressError, BlockedURLError, SSRFGuardError

from ourvidz import log
from ourvidz.net.connector import Deadline, EgressDenied, run_before
from ourvidz.net.urls import Origin, origin

INVALID_URL = "it is not a plain http(s) URL"
NUMERIC_HOST = "its host ends in a number, which is an address in disguise"

_PRIVATE_NETWORKS = tuple(
    map(
        ip_network,
        ("10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"),
    )
)
"""Address ranges of allowed hosts. Link-local addresses are excluded because of cloud metadata services."""

_ADDRESS_RULES: tuple[tuple[str, Reach, str], ...] = (
    # IANA has allocated nothing but 2000::/3, so the rest of IPv6 is denied.
    ("::/0", Reach.DENIED, "outside of global unicast"),
    ("2000::/3", Reach.PERMITTED, "global unicast"),
    # An IPv4 address inside an IPv6 one. Only NAT64 (decoded by the library) is how real networks reach IPv4.
    ("::/96", Reach.DENIED, "IPv4-compatible"),
    ("::ffff:0:0/96", Reach.DENIED, "IPv4-mapped"),
    ("2001::/32", Reach.DENIED, "Teredo"),
    ("2002::/16", Reach.DENIED, "6to4"),
    ("168.63.129.16/32", Reach.DENIED, "the host services of a cloud, at a public address"),
)
_NUMERIC_LABEL = re.compile(r"(?:[0-9]+|0[xX][0-9a-fA-F]*)\.?\Z")
_IPV4_ADDRESS = re.compile(r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}")

_log = log.get(__name__)


class EgressPolicy:
    """Allows public addresses on the ports 80 and 443, and what an operator adds; implements `Connector`.

    `hosts` (`host`, any port, or `host:port`) may have private addresses too; addresses in `networks`
    (`10.1.0.0/16`) may be called as if they were public. `resolver` replaces `socket.getaddrinfo`. Safe to
    share between threads. Raises `ValueError` for a malformed network.
    """

    def __init__(
        self,
        hosts: Collection[str] = (),
        networks: Collection[str] = (),
        *,
        resolver: Resolver | None = None,
    ) -> None:
        allowed = tuple(ip_network(entry) for entry in networks)
        self._hosts = tuple(hosts)
        self._public = Policy(denied_networks=_address_table(), allowed_networks=allowed)
        self._listed = replace(self._public, allowed_networks=allowed + _PRIVATE_NETWORKS)
        self._resolver = resolver

    def refusal(self, url: str) -> str | None:
        """Why a URL must not be called, judged by its text alone, or None. For our log: the reason may name
        addresses."""
        destination = origin(url)
        if destination is None:
            return INVALID_URL
        try:
            self._policy(destination).check_url(url)
        except (BlockedURLError, BlockedAddressError) as blocked:
            return blocked.reason
        return NUMERIC_HOST if _is_disguised_address(destination) else None

    def connect(self, host: str, port: int, *, connect_timeout_s: float, deadline: Deadline) -> socket.socket:
        """Connect to one of the addresses of `host`, all of which the policy allows.

        Raises `EgressDenied` if it does not allow one of them, `OSError` if the name does not exist, no
        address accepts, or the deadline passes.
        """
        destination = Origin("http", f"[{host}]" if ":" in host else host.lower(), port)
        policy = self._policy(destination)
        url = f"http://{destination.netloc}/"
        if reason := self.refusal(url):
            raise _denied(destination, reason)
        try:
            target = policy.check_url(url)
            addresses = run_before(deadline, lambda: resolve(target, policy=policy, resolver=self._resolver))
            attempts = min(len(addresses), policy.max_connection_attempts)
            return connect(
                addresses,
                policy=policy,
                timeout=min(connect_timeout_s, deadline.remaining_s() / attempts),
            )
        except SSRFGuardError as blocked:
            raise _denied(destination, str(blocked)) from blocked

    def _policy(self, destination: Origin) -> Policy:
        """The address rules for a destination: those of allowed hosts, or the public ones."""
        if destination.is_among(self._hosts):
            return replace(self._listed, allowed_ports=frozenset({destination.port}))
        return self._public


def _address_table() -> AddressTable:
    """The library's table of denied address blocks, with our rules in place of equal blocks."""
    own = {
        ip_network(net): Block(ip_network(net), name, "ours", reach) for net, reach, name in _ADDRESS_RULES
    }
    return AddressTable((*(b for b in DEFAULT_DENIED.blocks if b.network not in own), *own.values()))


def _is_disguised_address(destination: Origin) -> bool:
    """Whether a host name is one that C libraries read as an IPv4 address (0x7f.1). Addresses in their usual
    form are not disguised."""
    host = destination.host
    if host.startswith("[") or _IPV4_ADDRESS.fullmatch(host):
        return False
    return bool(_NUMERIC_LABEL.match(host.rstrip(".").rpartition(".")[2]))


def _denied(destination: Origin, reason: str) -> EgressDenied:
    """Log a refused destination and build its error; the caller raises it."""
    _log.warning("host_refused", host=destination.host, port=destination.port, reason=reason)
    return EgressDenied(reason)
