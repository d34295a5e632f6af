"""The checks of `ourvidz doctor` for the host: GPU driver, memory, disks and clocks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile

import redis

from ourvidz.cli import nvidia
from ourvidz.cli.broker_checks import broker_address
from ourvidz.cli.checks import NETWORK_TIMEOUT_S, Check, failed, ok, skipped
from ourvidz.hub.inventory import weight_files
from ourvidz.hub.staging import free_bytes
from ourvidz.net.client import HttpClient, RequestFailure
from ourvidz.redis_clients import open_client
from ourvidz.settings import Settings

OLDEST_DRIVERS = {12: 525, 13: 580}
"""Oldest driver by major version of CUDA: https://docs.nvidia.com/deploy/cuda-compatibility."""
SYSTEM_GIB = 4
"""Memory of the host that processes and libraries need beside models that sleep there."""
WRITTEN_BYTES = 16 << 20
READ_BYTES = 256 << 20
"""How much is written and read to measure a disk."""
SLOW_WRITE_MB_S = 5.0
MIN_FREE_BYTES = 2 << 30
"""Free space of a disk for assets and state in production."""
BROKER_SKEW_S = 5.0
"""Leases are shorter than a minute, and the ledger and its workers compare their times."""
RECEIVER_SKEW_S = 60.0
"""Receivers refuse callbacks whose time is five minutes from theirs."""
_MIB, _GIB, _MB = 1 << 20, 1 << 30, 1_000_000
_CUDA = re.compile(r"^cuda.*=\s*'(\d+)\.(\d+)'", re.MULTILINE)


def check_driver(settings: Settings) -> Check:
    """The driver answers, is recent enough for torch, and knows the GPU of `OURVIDZ_GPU`."""
    try:
        gpus = nvidia.query_gpus()
    except nvidia.DriverError as error:
        return failed("driver", str(error), "restart the driver or the host, and see dmesg")
    if not gpus:
        what = "nvidia-smi is not installed" if gpus is None else "nvidia-smi shows no GPU"
        if settings.requires_gpu:
            return failed("driver", what, "install the NVIDIA driver, or set OURVIDZ_ALLOW_CPU=true")
        return skipped("driver", f"{what}; the models run on the CPU")
    driver, cuda = gpus[0].driver, _torch_cuda()
    oldest = OLDEST_DRIVERS.get(cuda[0]) if cuda else None
    if cuda and oldest and int(driver.partition(".")[0] or 0) < oldest:
        reason = f"driver {driver} is too old for torch, which is built for CUDA {cuda[0]}.{cuda[1]}"
        return failed("driver", reason, f"install driver {oldest} or newer, or torch for an older CUDA")
    names = "; ".join(f"{gpu.index} {gpu.name} ({gpu.uuid})" for gpu in gpus)
    if settings.gpu is not None and nvidia.select_gpu(gpus, settings.gpu) is None:
        reason = f"OURVIDZ_GPU={settings.gpu} is none of: {names}"
        return failed("driver", reason, "set it to an index or UUID of these")
    return ok("driver", f"{driver}: {names}")


def check_memory(settings: Settings, *, root: Path = Path("/")) -> Check:
    """The memory of the host, or of its control group, holds the models that sleep there."""
    total, available = _host_memory(root)
    if total is None or available is None:
        return skipped("memory", "/proc/meminfo cannot be read")
    reason = f"{available // _MIB} of {total // _MIB} MiB available"
    if settings.profile != "production" or not settings.requires_gpu:
        return ok("memory", reason)
    needed = (settings.host_budget_mib << 20) + SYSTEM_GIB * _GIB
    if total < needed:
        reason = f"{reason}; models may sleep in {settings.host_budget_mib} MiB, too much with all the rest"
        fix = f"set OURVIDZ_HOST_BUDGET_MIB to {max(0, (total - SYSTEM_GIB * _GIB) // _MIB)} or less"
        return failed("memory", reason, fix)
    return ok("memory", f"{reason}, {settings.host_budget_mib} MiB of it for models that sleep")


def check_disk(settings: Settings) -> Check:
    """The disks of state and assets have space and can be written; the one of the checkpoints is fast enough
    to load them in time."""
    folders = [settings.state_dir]
    if settings.storage == "local":
        folders.append(settings.storage_dir)
    texts = []
    for folder in dict.fromkeys(folders):
        free = free_bytes(folder)
        if settings.profile == "production" and free < MIN_FREE_BYTES:
            reason = f"{free // _MIB} MiB are free on the disk of {folder}"
            return failed("disk", reason, f"free {MIN_FREE_BYTES // _MIB} MiB there, or use another disk")
        try:
            speed = _write_speed(folder)
        except OSError as error:
            reason = f"{folder} cannot be written: {error.strerror or error}"
            return failed(
                "disk", reason, "correct its permissions, or OURVIDZ_STATE_DIR and OURVIDZ_STORAGE_DIR"
            )
        if settings.profile == "production" and speed < SLOW_WRITE_MB_S:
            reason = f"{folder}: {speed:.1f} MB/s are written"
            return failed("disk", reason, "use a faster disk: results wait for it")
        texts.append(f"{folder}: {free // _GIB} GiB free, {speed:.0f} MB/s written")
    slow, text = _check_reading(settings)
    if slow:
        return failed("disk", text, slow)
    return ok("disk", "; ".join((*texts, *([text] if text else ()))))


def check_clock(settings: Settings, *, clock: Callable[[], float] = time.time) -> Check:
    """The clock of this host agrees with those of the Redis server and of the callback receiver."""
    texts = []
    url, _ = broker_address(settings)
    if url is not None:
        try:
            with open_client(url, connect_s=NETWORK_TIMEOUT_S, answer_s=NETWORK_TIMEOUT_S) as client:
                before = clock()
                seconds, micros = client.time()
                skew = seconds + micros / 1e6 - (before + clock()) / 2
        except (redis.RedisError, ValueError) as error:
            texts.append(f"the Redis server does not tell its time ({type(error).__name__})")
        else:
            if abs(skew) > BROKER_SKEW_S:
                return _wrong_clock(f"the Redis server's clock is {_ahead(skew)} this one")
            texts.append(f"{abs(skew):.1f} s from the Redis server")
    if settings.default_callback_url is not None:
        response = HttpClient(timeout_s=NETWORK_TIMEOUT_S).options(settings.default_callback_url, headers={})
        date = None if isinstance(response, RequestFailure) else response.headers.get("date")
        moment = _parse_date(date)
        if moment is None:
            texts.append("the callback receiver does not tell its time")
        elif abs(skew := moment.timestamp() - clock()) > RECEIVER_SKEW_S:
            return _wrong_clock(f"the callback receiver's clock is {_ahead(skew)} this one")
        else:
            texts.append(f"{abs(skew):.0f} s from the callback receiver")
    if not texts:
        return skipped("clock", "there is no other clock to compare with")
    return ok("clock", ", ".join(texts))


def _wrong_clock(reason: str) -> Check:
    return failed("clock", reason, "synchronise both with NTP (chrony, systemd-timesyncd)")


def _ahead(skew: float) -> str:
    return f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'}"


def _parse_date(value: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value or "")
    except (ValueError, TypeError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _torch_cuda() -> tuple[int, int] | None:
    """The version of CUDA that torch is built for, read from its files: an import takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        match = _CUDA.search(Path(spec.origin).with_name("version.py").read_text(encoding="utf-8"))
    except OSError:
        return None
    return (int(match[1]), int(match[2])) if match else None


def _host_memory(root: Path) -> tuple[int | None, int | None]:
    """Total and available memory in bytes; not more than the limit of this process's control group."""
    try:
        text = (root / "proc/meminfo").read_text()
        values = {line.split(":")[0]: int(line.split()[1]) << 10 for line in text.splitlines()}
        total, available = values["MemTotal"], values["MemAvailable"]
    except (OSError, ValueError, IndexError, KeyError):
        return None, None
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int((root / name).read_text())
        except (OSError, ValueError):
            continue
        total, available = min(total, limit), min(available, limit)
    return total, available


def _write_speed(folder: Path) -> float:
    """MB/s with which a file is written and synchronised in a folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        started = time.monotonic()
        for _ in range(WRITTEN_BYTES // _MIB):
            file.write(os.urandom(_MIB))
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN_BYTES / _MB / max(1e-6, time.monotonic() - started)


def _check_reading(settings: Settings) -> tuple[str, str]:
    """What to do about checkpoints that load too slowly, empty if they do not; and the measured speed."""
    paths = (settings.sdxl_model, settings.wan_model, settings.wan_vace_model, settings.qwen_model)
    slow, text = "", ""
    for path in (path for path in paths if path is not None and path.exists()):
        files = weight_files(path)
        total = sum(file.stat().st_size for file in files)
        if total < READ_BYTES:
            continue
        speed = _read_speed(max(files, key=lambda file: file.stat().st_size))
        text = f"{path}: {speed:.0f} MB/s read, {total / _MB / speed:.0f} s to read all"
        if total / _MB / speed > settings.model_load_s:
            slow = "raise OURVIDZ_MODEL_LOAD_S, or put the checkpoint on a faster disk"
            return slow, text
    return slow, text


def _read_speed(file: Path) -> float:
    """MB/s with which the beginning of a file is read from the disk, not from the memory of the host."""
    with file.open("rb", buffering=0) as content:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(content.fileno(), 0, READ_BYTES, os.POSIX_FADV_DONTNEED)
        started, left = time.monotonic(), READ_BYTES
        while left > 0 and (block := content.read(4 * _MIB)):
            left -= len(block)
        return (READ_BYTES - left) / _MB / max(1e-6, time.monotonic() - started)
