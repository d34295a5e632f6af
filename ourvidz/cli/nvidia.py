"""What the NVIDIA driver says of the GPUs of this host, by `nvidia-smi`."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

QUERY_TIMEOUT_S = 10
_FIELDS = "index,uuid,name,memory.total,driver_version"


@dataclass(frozen=True, slots=True)
class DriverGpu:
    """One GPU as the driver sees it."""

    index: str
    uuid: str
    name: str
    total_mib: int
    driver: str


class DriverError(Exception):
    """The driver is there and does not answer as it should; the message is one line."""


def query_gpus(command: str = "nvidia-smi") -> list[DriverGpu] | None:
    """The GPUs of this host; None on a host without the driver's program. Raises `DriverError`."""
    program = shutil.which(command)
    if program is None:
        return None
    try:
        run = subprocess.run(
            [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=QUERY_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise DriverError(f"nvidia-smi did not answer within {QUERY_TIMEOUT_S} s") from None
    except OSError as error:
        raise DriverError(f"nvidia-smi cannot be run: {error.strerror}") from None
    if run.returncode != 0:
        lines = (run.stdout + run.stderr).strip().splitlines()
        raise DriverError(f"nvidia-smi: {lines[-1] if lines else f'exit status {run.returncode}'}")
    try:
        rows = [[cell.strip() for cell in line.split(",")] for line in run.stdout.strip().splitlines()]
        return [DriverGpu(row[0], row[1], row[2], int(row[3]), row[4]) for row in rows]
    except (ValueError, IndexError):
        raise DriverError(f"nvidia-smi says: {run.stdout.strip()[:100]}") from None


def select_gpu(gpus: list[DriverGpu], setting: str | None) -> DriverGpu | None:
    """The GPU that `OURVIDZ_GPU` names, by index or UUID; without it the first one."""
    if setting is None:
        return gpus[0] if gpus else None
    return next((gpu for gpu in gpus if setting == gpu.index or gpu.uuid.startswith(setting)), None)
