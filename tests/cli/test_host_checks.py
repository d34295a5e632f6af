"""The checks of the host: driver, memory, disks and clocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ourvidz.cli import host_checks, nvidia
from ourvidz.settings import Settings

MakeSettings = Callable[..., Settings]

TWO_GPUS = "echo '0, GPU-aaaa, Card A, 8192, 570.124'; echo '1, GPU-bbbb, Card B, 49152, 570.124'"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Install an `nvidia-smi` that runs these shell commands."""

    def install(commands: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{commands}\n")
        program.chmod(0o755)
        monkeypatch.setattr(nvidia.shutil, "which", lambda _: str(program))

    return install


def test_a_host_without_a_driver_is_fine_until_something_needs_a_gpu(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, production: dict[str, str]
) -> None:
    """A laptop has none; a worker of the production profile would not load its models."""
    monkeypatch.setattr(nvidia.shutil, "which", lambda _: None)
    assert host_checks.check_driver(make_settings()).status == "skipped"
    check = host_checks.check_driver(make_settings(**production))
    assert (check.status, check.reason) == ("failed", "nvidia-smi is not installed")
    assert "OURVIDZ_ALLOW_CPU" in check.fix


@pytest.mark.parametrize(
    ("commands", "cuda", "gpu", "status", "text"),
    [
        (TWO_GPUS, (12, 8), None, "ok", "570.124: 0 Card A (GPU-aaaa); 1 Card B (GPU-bbbb)"),
        (TWO_GPUS, (12, 8), "1", "ok", "Card B"),
        (TWO_GPUS, (12, 8), "GPU-bb", "ok", "Card B"),
        (TWO_GPUS, (12, 8), "GPU-cc", "failed", "OURVIDZ_GPU=GPU-cc is none of: 0 Card A"),
        (
            TWO_GPUS,
            (13, 0),
            None,
            "failed",
            "driver 570.124 is too old for torch, which is built for CUDA",
        ),
        (TWO_GPUS, None, None, "ok", "570.124"),
        (
            "echo 'No devices were found'; exit 6",
            (12, 8),
            None,
            "failed",
            "nvidia-smi: No devices were found",
        ),
        ("echo 'something, else'", (12, 8), None, "failed", "nvidia-smi says: something, else"),
        ("exec sleep 20", (12, 8), None, "failed", "nvidia-smi did not answer within 0.2 s"),
    ],
)
def test_what_the_driver_says(
    driver: Callable[[str], None],
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    commands: str,
    cuda: tuple[int, int] | None,
    gpu: str | None,
    status: str,
    text: str,
) -> None:
    """A driver that hangs, or is too old for torch, is named; a mistyped GPU beside those there are."""
    driver(commands)
    monkeypatch.setattr(nvidia, "QUERY_TIMEOUT_S", 0.2 if "sleep" in commands else 10)
    monkeypatch.setattr(host_checks, "_torch_cuda", lambda: cuda)
    check = host_checks.check_driver(make_settings(**({"OURVIDZ_GPU": gpu} if gpu else {})))
    assert check.status == status
    assert text in check.reason
    assert bool(check.fix) == (status == "failed")


def test_the_cuda_version_of_torch_is_read_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed build here has none; a build for a GPU names it."""
    assert host_checks._torch_cuda() is None or host_checks._torch_cuda()[0] >= 12
    (tmp_path / "version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(host_checks, "find_spec", lambda _: spec)
    assert host_checks._torch_cuda() == (13, 0)


def test_the_memory_of_the_host_must_hold_sleeping_models(
    make_settings: MakeSettings, production: dict[str, str], tmp_path: Path
) -> None:
    """Otherwise the kernel kills a worker when the second model falls asleep; a container's limit counts."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 67108864 kB\nMemAvailable: 60000000 kB\n")
    settings = make_settings(**production)
    assert host_checks.check_memory(settings, root=tmp_path).status == "ok"
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{16 << 30}\n")
    check = host_checks.check_memory(settings, root=tmp_path)
    assert (check.status, check.fix) == ("failed", "set OURVIDZ_HOST_BUDGET_MIB to 12288 or less")
    assert "of 16384 MiB" in check.reason
    assert host_checks.check_memory(make_settings(), root=tmp_path).status == "ok", "a laptop"
    assert host_checks.check_memory(settings, root=tmp_path / "none").status == "skipped"


def test_disks_are_written_and_leave_nothing_behind(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Of state and assets."""
    settings = make_settings(OURVIDZ_STORAGE_DIR=tmp_path / "assets")
    check = host_checks.check_disk(settings)
    assert check.status == "ok"
    assert f"{tmp_path / 'assets'}: " in check.reason
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_slow_or_forbidden_disk_is_named(
    make_settings: MakeSettings, production: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to change."""
    monkeypatch.setattr(host_checks, "WRITTEN_BYTES", 1 << 20)
    (tmp_path / "file").touch()
    forbidden = host_checks.check_disk(make_settings(OURVIDZ_STATE_DIR=tmp_path / "file/state"))
    assert forbidden.status == "failed"
    assert "cannot be written" in forbidden.reason
    monkeypatch.setattr(host_checks, "SLOW_WRITE_MB_S", 1e9)
    assert "MB/s are written" in host_checks.check_disk(make_settings(**production)).reason
    assert host_checks.check_disk(make_settings()).status == "ok", "a busy laptop"
    monkeypatch.setattr(host_checks, "free_bytes", lambda _: 1 << 30)
    full = host_checks.check_disk(make_settings(**production))
    assert (full.status, full.fix) == ("failed", "free 2048 MiB there, or use another disk")


def test_a_checkpoint_that_loads_too_slowly_is_named(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker would end its load at the limit, and begin it again, for ever."""
    monkeypatch.setattr(host_checks, "WRITTEN_BYTES", 1 << 20)
    monkeypatch.setattr(host_checks, "READ_BYTES", 1 << 20)
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "unet/weights.safetensors").write_bytes(bytes(2 << 20))
    assert f"{model}: " in host_checks.check_disk(make_settings(OURVIDZ_SDXL_MODEL=model)).reason
    monkeypatch.setattr(host_checks, "_read_speed", lambda _: 0.001)
    check = host_checks.check_disk(make_settings(OURVIDZ_SDXL_MODEL=model))
    assert (check.status, "OURVIDZ_MODEL_LOAD_S" in check.fix) == ("failed", True)
    assert "2097 s to read all" in check.reason


def test_clocks_are_compared_with_the_broker_and_the_receiver(
    make_settings: MakeSettings, redis_url: str, model_server: str, unused_port: int
) -> None:
    """Leases are judged by the first, signatures by the second."""
    broker = make_settings(OURVIDZ_REDIS_URL=redis_url)
    both = make_settings(OURVIDZ_REDIS_URL=redis_url, OURVIDZ_CALLBACK_URL=model_server)
    check = host_checks.check_clock(both)
    assert check.status == "ok"
    assert "from the Redis server, " in check.reason
    assert "from the callback receiver" in check.reason
    slow = host_checks.check_clock(broker, clock=lambda: time.time() - 90)
    assert (slow.status, slow.reason) == ("failed", "the Redis server's clock is 90 s ahead of this one")
    receiver = make_settings(OURVIDZ_CALLBACK_URL=model_server)
    fast = host_checks.check_clock(receiver, clock=lambda: time.time() + 500)
    assert fast.status == "failed"
    assert "the callback receiver's clock is" in fast.reason
    assert "behind this one" in fast.reason
    gone = make_settings(OURVIDZ_REDIS_URL=f"redis://127.0.0.1:{unused_port}/0")
    assert "does not tell its time" in host_checks.check_clock(gone).reason
    assert host_checks.check_clock(make_settings()).status == "skipped"
