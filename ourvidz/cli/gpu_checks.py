"""The check of `ourvidz doctor` for a GPU that several workers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from ourvidz.cli.broker_checks import broker_address
from ourvidz.cli.checks import Check, failed, ok, skipped
from ourvidz.errors import OurvidzError
from ourvidz.records.devices import DeviceMemory
from ourvidz.settings import Settings

UUID_LENGTH = 36
"""The length of the UUID of a GPU; names of emulated cards are shorter."""

_failed = partial(failed, "shared gpu")


def check_shared_gpu(settings: Settings) -> Check:
    """The workers that hold memory of one GPU see each other: they have one host name and one namespace of
    process ids. Otherwise nobody knows who holds the memory, and whether its holder lives."""
    from ourvidz.ledger.store import Ledger

    url, fix = broker_address(settings)
    if url is None:
        return skipped("shared gpu", "there is no Redis server yet")
    try:
        ledger = Ledger(url, prefix=settings.key_prefix)
        try:
            memory = {device: ledger.device_memory(device) for device in ledger.devices()}
        finally:
            ledger.close()
    except (OurvidzError, ValueError) as error:
        return _failed(f"{type(error).__name__}: {error}", fix)
    return judge(memory)


def judge(devices: Mapping[str, DeviceMemory]) -> Check:
    """The result for what the ledger knows of all devices."""
    from ourvidz.vram.owners import host_and_namespace

    hosts: dict[str, set[str]] = {}
    for device, memory in devices.items():
        holders = {each.owner for each in memory.residents if each.lease_until > memory.now}
        if not holders:
            continue
        host, _, name = device.rpartition(":")
        if len(name) >= UUID_LENGTH:
            hosts.setdefault(name, set()).add(host)
        try:
            namespaces = {host_and_namespace(owner)[1] for owner in holders} - {""}
        except ValueError:
            continue  # a later release
        if len(namespaces) > 1:
            reason = f"process ids of {_workers(holders)} on {name} are those of different containers"
            return _failed(reason, "let them share the process ids: pid: host, or shareProcessNamespace")
    for name, seen_from in hosts.items():
        if len(seen_from) > 1:
            reason = f"{', '.join(sorted(seen_from))} each take {name} for a GPU of their own"
            return _failed(reason, "give containers that share a GPU one host name, and let them share pids")
    if not devices:
        return skipped("shared gpu", "no worker shares a GPU")
    return ok("shared gpu", f"{len(devices)} known, the workers on each see each other")


def _workers(owners: Iterable[str]) -> str:
    return " and ".join(sorted({owner.partition(" ")[0] for owner in owners}))
