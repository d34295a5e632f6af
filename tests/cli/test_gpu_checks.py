"""Whether the workers that share a GPU see each other, as `ourvidz doctor` tells."""

from __future__ import annotations

import pytest

from ourvidz.cli.gpu_checks import check_shared_gpu, judge
from ourvidz.ledger.store import Ledger
from ourvidz.records.devices import DeviceMemory, Part
from ourvidz.settings import load_settings
from ourvidz.testing import key_prefix, redis_url

UUID = "8c22b0a5-c8ad-3ee7-7ee5-6f0b8b6b1d7e"
SDXL, WAN = "sdxl@gpu-gpu0 gpu/4026531836 7 100", "wan@gpu-gpu0 gpu/4026531836 8 101"
CONTAINER = "wan@gpu-gpu0 gpu/4026532999 7 99"
FORMER = "chat@gpu-gpu0 gpu 9 102"


def granted(*owners: tuple[str, str]) -> dict[str, DeviceMemory]:
    """What the ledger knows when each owner holds a part on its device."""
    with key_prefix() as prefix:
        ledger = Ledger(redis_url(), prefix=prefix)
        for number, (device, owner) in enumerate(owners):
            parts = [Part(id=f"part-{number}", mib=1)]
            ledger.reserve_memory(device, owner, parts, family="sdxl", budget_mib=99, lease_s=60, turn_s=60)
        memory = {device: ledger.device_memory(device) for device in ledger.devices()}
        ledger.close()
    return memory


@pytest.mark.parametrize(
    ("owners", "status", "word"),
    [
        ((), "skipped", "no worker"),
        (((f"gpu:{UUID}", SDXL), (f"gpu:{UUID}", WAN), (f"gpu:{UUID}", FORMER)), "ok", "1 known"),
        (((f"gpu:{UUID}", SDXL), (f"gpu:{UUID}", CONTAINER)), "failed", "process ids of sdxl@gpu-gpu0"),
        (((f"a:{UUID}", SDXL), (f"b:{UUID}", WAN)), "failed", "a, b each take"),
        ((("a:card", SDXL), ("b:card", WAN)), "ok", "2 known"),
        (((f"gpu:{UUID}", "a later release"),), "ok", "1 known"),
    ],
)
def test_workers_that_share_a_gpu_must_see_each_other(
    owners: tuple[tuple[str, str], ...], status: str, word: str
) -> None:
    """Host name and process ids; emulated cards of two hosts may have one name."""
    check = judge(granted(*owners))
    assert check.status == status
    assert word in check.reason


def test_a_server_that_is_away_is_the_reason() -> None:
    """It ends within seconds."""
    settings = load_settings(_env_file=None, OURVIDZ_REDIS_URL="redis://127.0.0.1:1/0")
    assert check_shared_gpu(settings).status == "failed"
