"""The egress policy refuses private addresses in every notation, by name and after DNS rebinding."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from ssrfguard.resolvers import UdpResolver

from ourvidz.net.connector import Deadline, EgressDenied
from ourvidz.net.egress_policy import EgressPolicy

SLACK_S = 3.0

REFUSED = [
    # loopback and unspecified addresses
    *("http://127.0.0.1/", "http://127.8.9.10/", "http://0.0.0.0/", "http://[::1]/", "http://[::]/"),
    # private
    *("http://10.0.0.1/", "http://172.16.0.1/", "http://172.31.255.255/", "http://192.168.1.1/"),
    *("http://[fc00::1]/", "http://[fd12:3456::1]/", "http://[fec0::1]/"),
    # link-local, and the metadata services of clouds
    *("http://169.254.0.1/", "http://169.254.169.254/latest/meta-data/", "http://169.254.170.2/"),
    *("http://[fe80::1]/", "http://[fe80::1%25eth0]/", "http://[fd00:ec2::254]/"),
    *("http://100.100.100.200/", "http://192.0.0.192/", "http://168.63.129.16/"),
    # shared, reserved, documentation, benchmarking, multicast, broadcast
    *("http://100.64.0.1/", "http://192.0.0.1/", "http://192.0.2.1/", "http://198.51.100.1/"),
    *("http://203.0.113.1/", "http://198.18.0.1/", "http://192.88.99.1/", "http://224.0.0.1/"),
    *("http://239.255.255.250/", "http://240.0.0.1/", "http://255.255.255.255/", "http://[ff02::1]/"),
    *("http://[2001:db8::1]/", "http://[3fff::1]/", "http://[100::1]/", "http://[4000::1]/"),
    # an IPv4 address inside an IPv6 one
    *("http://[::ffff:127.0.0.1]/", "http://[::ffff:a9fe:a9fe]/", "http://[::127.0.0.1]/"),
    *("http://[::ffff:0:127.0.0.1]/", "http://[64:ff9b::127.0.0.1]/", "http://[64:ff9b::a9fe:a9fe]/"),
    *("http://[64:ff9b:1::10.0.0.1]/", "http://[2002:7f00:1::]/", "http://[2002:a9fe:a9fe::1]/"),
    *("http://[2001:0:7f00:1::]/", "http://[::ffff:8.8.8.8]/", "http://[2002:808:808::]/"),
    # other notations of loopback addresses
    *("http://2130706433/", "http://017700000001/", "http://0177.0.0.1/", "http://127.1/", "http://127.0.1/"),
    *("http://0x7f000001/", "http://0x7f.0x0.0x0.0x1/", "http://0x7f.1/", "http://0X7F.1/", "http://0/"),
    *("http://127.0.0.1./", "http://0x8080808/", "http://134744072/", "http://010.8.8.8/"),
    *("http://①②⑦.0.0.1/", "http://127。0。0。1/", "http://１２７.0.0.1/", "http://host.0x1/"),
    # other schemes
    *("file:///etc/passwd", "ftp://example.com/a.png"),
    *("gopher://example.com/_x", "dict://example.com:11211/"),
    *("ldap://example.com/", "jar:http://example.com!/", "javascript:alert(1)", "data:text/html,x", "//x/y"),
    # user names, ports, and URLs that parsers read differently
    *("http://user@example.com/", "http://user:pw@example.com/", "http://example.com@127.0.0.1/"),
    *("http://127.0.0.1:80@example.com/", "http://example.com\\@127.0.0.1/"),
    "http://example.com#@127.0.0.1\\/",
    *("http://example.com:22/", "http://example.com:6379/", "https://example.com:8443/"),
    *("http://example.com:0/", "http://example.com:65536/", "http://example.com:x/", "http:///a", "http://"),
    *("http://exam ple.com/", "http://example.com\r\nHost: x/"),
    *("http://example.com\t/", "http://%31%32%37.1/"),
    *("http://[::1/", "http://[1.2.3.4]/", f"http://{'a.' * 200}example/", f"http://a.example/{'a' * 9000}"),
]  # fmt: skip

PUBLIC = [
    *("http://example.com/", "https://example.com/a.png?b=c#d"),
    *("http://example.com:80/", "https://example.com:443/"),
    *("http://8.8.8.8/", "http://[2606:4700::1111]/"),
    *("http://bücher.example/", "http://xn--bcher-kva.example/"),
    *("http://example.com:443/", "http://7f.example/", "http://1.2.3.example/", "http://[64:ff9b::8.8.8.8]/"),
]  # fmt: skip


def never(*_: Any) -> Any:
    raise AssertionError("no name may be looked up")


def resolves_to(*addresses: str) -> Callable[..., list[Any]]:
    """Return a resolver with a fixed result."""

    def resolver(host: str, port: int, *_: Any) -> list[Any]:
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (
                families[":" in one],
                socket.SOCK_STREAM,
                6,
                "",
                (one, port, 0, 0) if ":" in one else (one, port),
            )
            for one in addresses
        ]

    return resolver


def connect(policy: EgressPolicy, host: str, port: int = 80, within_s: float = 30.0) -> str:
    """The address that the policy connects to."""
    deadline = Deadline.after(within_s)
    with policy.connect(host, port, connect_timeout_s=1.0, deadline=deadline) as connected:
        return str(connected.getpeername()[0])


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_with_a_private_address_is_refused_without_a_lookup(url: str) -> None:
    """Literal addresses need no DNS query."""
    assert EgressPolicy(resolver=never).refusal(url)


@pytest.mark.parametrize("url", PUBLIC)
def test_a_public_url_is_not_refused(url: str) -> None:
    """Public addresses are allowed by default."""
    assert EgressPolicy(resolver=never).refusal(url) is None


@pytest.mark.parametrize(
    "addresses",
    [
        *(["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["0.0.0.0"], ["100.64.0.1"], ["224.0.0.1"]),
        *(["::1"], ["fe80::1"], ["fd00::1"], ["ff02::1"], ["2002:7f00:1::"], ["64:ff9b::7f00:1"]),
        *(["::ffff:127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"]),
        ["2606:4700::1111", "::1"],
    ],
)  # fmt: skip
def test_a_host_name_with_a_private_address_is_refused(addresses: list[str]) -> None:
    """One private address among public ones is enough."""
    with pytest.raises(EgressDenied):
        connect(EgressPolicy(resolver=resolves_to(*addresses)), "innocent.example")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "0x7f.1", "2130706433", "127.1", "::1", "127.0.0.1"]
)
def test_no_notation_of_a_loopback_address_is_called(host: str) -> None:
    """`getaddrinfo` accepts numbers as addresses, so resolved addresses are checked as well."""
    with pytest.raises(EgressDenied):
        connect(EgressPolicy(), host)


def test_the_checked_address_is_the_one_connected_to(
    site: Any, name_server: Callable[[list[str]], Any]
) -> None:
    """The name is resolved once only, which prevents DNS rebinding."""
    server = name_server(["127.0.0.1", "169.254.169.254"])
    resolver = UdpResolver(
        nameservers=("127.0.0.1",), nameserver_port=server.port, families=(socket.AF_INET,)
    )
    policy = EgressPolicy([f"rebind.example:{site.port}"], resolver=resolver)
    assert connect(policy, "rebind.example", site.port) == "127.0.0.1"
    assert server.query_count == 1
    with pytest.raises(EgressDenied):
        connect(policy, "rebind.example", site.port)


@pytest.mark.parametrize(
    ("allowed", "url", "refused"),
    [
        ("127.0.0.1:9000", "http://127.0.0.1:9000/a", False),
        ("127.0.0.1:9000", "http://127.0.0.1:9001/a", True),
        ("127.0.0.1:9000", "http://127.0.0.1/a", True),
        ("minio.internal", "http://MINIO.internal:9000/a", False),
        ("minio.internal", "http://sub.minio.internal:9000/a", True),
        ("minio.internal", "http://user@minio.internal:9000/a", True),
        ("minio.internal", "ftp://minio.internal/a", True),
        ("10.1.0.0/16", "http://10.1.2.3/a", False),
        ("10.1.0.0/16", "http://10.2.2.3/a", True),
        ("10.1.0.0/16", "http://10.1.2.3:9000/a", True),
        ("10.1.0.0/16", "http://[::ffff:10.1.2.3]/a", True),
        ("[::1]:9000", "http://[::1]:9000/a", False),
        ("fd00::/8", "http://[fd00::1]/a", False),
        ("under_score.example", "http://under_score.example/a", True),
    ],
)
def test_allowed_hosts_and_networks_may_be_private(allowed: str, url: str, refused: bool) -> None:
    """Local development and private storage use private addresses."""
    named = {"networks": [allowed]} if "/" in allowed else {"hosts": [allowed]}
    assert bool(EgressPolicy(**named, resolver=never).refusal(url)) is refused


def test_an_allowed_host_may_have_private_and_public_addresses(site: Any) -> None:
    """The operator trusts an allowed host, which may have split-horizon DNS."""
    policy = EgressPolicy([f"mixed.example:{site.port}"], resolver=resolves_to("127.0.0.1", "8.8.8.8"))
    assert connect(policy, "mixed.example", site.port) == "127.0.0.1"


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "224.0.0.1", "0.0.0.0", "fe80::1", "::ffff:127.0.0.1"]
)
def test_a_cloud_metadata_address_is_refused_for_allowed_hosts(address: str) -> None:
    """The DNS records of an allowed host may be controlled by others."""
    with pytest.raises(EgressDenied):
        connect(EgressPolicy(["partner.example"], resolver=resolves_to(address)), "partner.example")


def test_a_slow_name_server_ends_at_the_deadline() -> None:
    """The system resolver has no timeout, and an attacker may control the DNS server of a name."""
    queried, finished = threading.Event(), threading.Event()

    def slow(*_: Any) -> Any:
        queried.set()
        finished.wait(30)
        raise socket.gaierror("too late")

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        connect(EgressPolicy(resolver=slow), "slow.example", within_s=0.2)
    assert time.monotonic() - started < SLACK_S
    assert queried.is_set()
    finished.set()


def test_an_unknown_host_name_is_a_dns_failure() -> None:
    """It is not reported as a refusal by the policy."""

    def unknown(*_: Any) -> Any:
        raise socket.gaierror("no such name")

    with pytest.raises(OSError, match="no such name"):
        connect(EgressPolicy(resolver=unknown), "gone.example")


def test_an_invalid_network_in_the_settings_is_an_error() -> None:
    """It is not ignored, which would refuse the hosts that the operator wants to allow."""
    with pytest.raises(ValueError, match=r"10[.]0[.]0[.]0/40"):
        EgressPolicy(networks=["10.0.0.0/40"])
