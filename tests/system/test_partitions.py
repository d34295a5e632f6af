"""Hosts that no longer hear each other, and primaries that die, in network namespaces."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from campaigns import partitions
from campaigns.network import OUTSIDE, Network, Unsupported, unsupported_reason
from campaigns.partitions import Result, Scenario

JOBS = 30
"""Jobs in each scenario; the campaign runs 200."""
SHORT = ("worker1 -> server1", "primary with worker1", "kill lagging primary")
"""A silent link, a primary that goes on with one worker, and one that dies before its replica has all."""


@pytest.fixture
def network() -> Iterator[Network]:
    """Two hosts; skipped where namespaces are forbidden."""
    try:
        with Network(("one", "two")) as network:
            yield network
    except Unsupported as unsupported:
        pytest.skip(f"no partitions are tested: {unsupported}")


def can_reach(network: Network, sender: str, receiver: str) -> bool:
    """Whether a datagram arrives."""
    listen = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 9)); print(flush=True)"
    wait = "; s.settimeout(2); s.recv(1)"
    address = (network.address(receiver), 9)
    send = f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', {address})"
    with subprocess.Popen(
        (*network.enter(receiver), sys.executable, "-c", listen + wait),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as listener:
        assert listener.stdout is not None
        listener.stdout.readline()
        subprocess.run((*network.enter(sender), sys.executable, "-c", send), check=True)
        return listener.wait(10) == 0


@pytest.mark.system
def test_a_link_is_cut_in_one_direction_and_healed(network: Network) -> None:
    """The campaign would prove nothing if its faults were none."""
    pairs = [("one", "two"), ("two", "one"), (OUTSIDE, "one"), ("one", OUTSIDE)]
    assert all(can_reach(network, *pair) for pair in pairs)
    network.cut("one", "two")
    network.cut(OUTSIDE, "one")
    assert [can_reach(network, *pair) for pair in pairs] == [False, True, False, True]
    network.heal()
    assert all(can_reach(network, *pair) for pair in pairs)


@pytest.mark.system
@pytest.mark.timeout(400)
def test_partitions_and_lost_primaries_break_no_promise(tmp_path: Path) -> None:
    """With the confirmation of a replica no accepted job is lost, and no caller hears of two endings."""
    reason = unsupported_reason()
    if reason is not None:
        pytest.skip(f"no partitions are tested: {reason}")
    chosen: list[Scenario] = [one for one in partitions.scenarios() if one.name in SHORT]
    results: list[Result] = list(partitions.run(tmp_path, chosen, jobs=JOBS, seed=1, acks=1))
    assert [result for result in results if not result.kept] == []
    assert [result.jobs for result in results] == [JOBS] * len(SHORT)
    assert any(result.failovers for result in results)
