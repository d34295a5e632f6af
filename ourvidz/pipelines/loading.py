"""What loading weights has in common, whatever they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines import checksums, devices
from ourvidz.pipelines.checkpoints import Checkpoint

MIB = 1 << 20


@contextmanager
def reading(checkpoint: Checkpoint) -> Iterator[None]:
    """Check the files, keep the libraries quiet, and turn whatever they raise into `ModelLoadError`."""
    checksums.verify(checkpoint.root)
    devices.quiet_libraries()
    try:
        yield
    except Exception as error:
        # Library errors of every kind end here: OSError, ValueError, SafetensorError, RuntimeError.
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelLoadError(f"{checkpoint.path} could not be loaded: {line}") from error


def weights_mib(parts: Iterable[object]) -> int:
    """What the weights among these parts of pipelines take (MiB), each counted once."""
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    weights = {id(weight): weight.nbytes for module in modules for weight in module.parameters()}
    return round(sum(weights.values()) / MIB)


def files_mib(folder: Path) -> int:
    """What the weights in a folder take on the disk, in whole MiB and at least one."""
    return max(1, round(sum(file.stat().st_size for file in folder.glob("*.safetensors")) / MIB))
