"""The emulated card: shared by processes, full as a GPU is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from ourvidz.errors import SettingsError
from ourvidz.settings import load_settings
from ourvidz.vram.device import EmulatedDevice, EmulatedSpec
from ourvidz.vram.owners import has_ended, is_visible, owner_id

SPEC = EmulatedSpec("card", 48 * 1024, 0.001)
HOLDER = """
import sys
from pathlib import Path
from ourvidz.errors import SettingsError
from ourvidz.settings import load_settings
from ourvidz.vram.device import EmulatedDevice, EmulatedSpec
EmulatedDevice(EmulatedSpec("card", 48 * 1024, 0.001), Path(sys.argv[1])).allocate("weights", 40000)
print("held", flush=True)
sys.stdin.read()
"""


def test_the_setting_is_read() -> None:
    """Name, size and scale."""
    assert EmulatedSpec.parse("card:48GiB,scale=0.001") == SPEC
    assert EmulatedSpec.parse("a-b:0.5GiB") == EmulatedSpec("a-b", 512, 1.0)


@pytest.mark.parametrize("value", ["", "card", "card:48", "card:48GiB,scale=2", "card:0GiB", "a/b:4GiB"])
def test_a_wrong_setting_is_refused(value: str) -> None:
    """The error shows the value."""
    with pytest.raises(ValueError, match="must"):
        EmulatedSpec.parse(value)


def test_an_allocation_that_does_not_fit_raises_torchs_own_error(tmp_path: Path) -> None:
    """Nothing is taken then; a name that is allocated again changes its size."""
    card = EmulatedDevice(SPEC, tmp_path)
    card.allocate("weights", 40_000)
    with pytest.raises(torch.OutOfMemoryError, match="9500 MiB wanted, 9152 MiB free"):
        card.allocate("work", 9_500)
    card.allocate("weights", 45_000)
    assert (card.free_mib(), card.own_mib(), card.total_mib()) == (48 * 1024 - 45_000, 45_000, 48 * 1024)
    card.release("weights")
    card.release("weights")
    assert card.free_mib() == card.total_mib()
    assert card.size_mib(10.2) == 10_200


def test_processes_share_the_card_and_leave_nothing_behind(tmp_path: Path) -> None:
    """What another process holds is not free, until that process is killed."""
    card = EmulatedDevice(SPEC, tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert (card.free_mib(), card.own_mib()) == (48 * 1024 - 40_000, 0)
        with pytest.raises(torch.OutOfMemoryError):
            card.allocate("weights", 10_000)
        holder.kill()
    card.allocate("weights", 10_000)
    assert card.free_mib() == 48 * 1024 - 10_000


NO_PROCESS = " ".join([*owner_id("sdxl").split(" ")[:2], "-5", "1"])


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        '{"sdxl@',
        "[]",
        "[" * 100_000,
        '{"a": 1}',
        '{"a": {"weights": 1e999}}',
        json.dumps({owner_id("sdxl again"): {"weights": -40_000}}),
        '{"no owner": {"weights": 5}}',
        json.dumps({NO_PROCESS: {"weights": 5}}),
    ],
    ids=range(9),
)
def test_a_damaged_file_is_rebuilt(tmp_path: Path, damaged: str) -> None:
    """What a process holds is known to itself: the card is neither empty nor unusable."""
    card, neighbour = (EmulatedDevice(SPEC, tmp_path, worker_id=name) for name in ("sdxl", "wan"))
    card.allocate("weights", 40_000)
    neighbour.allocate("weights", 2_000)
    (tmp_path / "card.json").write_text(damaged)
    assert (card.own_mib(), neighbour.own_mib()) == (40_000, 2_000)
    assert card.free_mib() == 48 * 1024 - 42_000
    card.release("weights")
    assert neighbour.free_mib() == 48 * 1024 - 2_000


def test_an_owner_of_another_process_namespace_is_not_judged(tmp_path: Path) -> None:
    """Its pid is that of another process here. Who shares an emulated card can be seen."""
    worker, host, pid, started_at = owner_id("wan").rsplit(" ", maxsplit=3)
    name, mark, namespace = host.partition("/")
    assert namespace.isdigit()
    container = f"{worker} {name}{mark}{int(namespace) + 1} {int(pid) + 100_000} {started_at}"
    assert (is_visible(container), has_ended(container)) == (False, False)
    assert has_ended(f"{worker} {name} {int(pid) + 100_000} {started_at}"), "that of an earlier release"
    (tmp_path / "card.json").write_text(json.dumps({container: {"weights": 40_000}}))
    assert EmulatedDevice(SPEC, tmp_path).free_mib() == 48 * 1024


def test_an_owner_is_one_process() -> None:
    """A later process with the same pid is another owner; processes of other hosts are never taken for
    ended."""
    own = owner_id("sdxl@here-gpu0")
    assert not has_ended(own)
    worker, host, pid, started_at = own.rsplit(" ", maxsplit=3)
    assert has_ended(f"{worker} {host} {pid} {float(started_at) - 5:.2f}")
    assert not has_ended(f"{worker} elsewhere {pid} 1.00")


@pytest.mark.parametrize("value", ["card", "card:1.2.3GiB", "card:.GiB", "card:0GiB", "card:4GiB,scale=0.0"])
def test_a_wrong_setting_is_refused_at_the_start(value: str) -> None:
    """The error names the variable, before any process opens the card."""
    with pytest.raises(SettingsError, match="OURVIDZ_EMULATED_GPU"):
        load_settings(_env_file=None, OURVIDZ_EMULATED_GPU=value)


def test_a_process_lives_on_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day at which it started is another one then, as psutil computes it."""
    owner = owner_id("worker")
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: 1.0)
    assert not has_ended(owner)
