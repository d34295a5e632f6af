"""What loading the weights of any model family has in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines import checksums, devices
from ourvidz.pipelines.checkpoints import Checkpoint

BYTES_PER_MIB = 1 << 20


@contextmanager
def loading(checkpoint: Checkpoint) -> Iterator[None]:
    """Verify the checkpoint's checksums, silence the libraries, and convert any exception inside this context
    into `ModelLoadError`."""
    checksums.verify(checkpoint.root)
    devices.quiet_libraries()
    try:
        yield
    except Exception as error:
        # The libraries raise OSError, ValueError, SafetensorError, RuntimeError and more.
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelLoadError(f"{checkpoint.path} could not be loaded: {line}") from error


def weights_mib(components: Iterable[object]) -> int:
    """Size of the weights (MiB) of those components that are torch modules; shared weights count once."""
    modules = [component for component in components if isinstance(component, torch.nn.Module)]
    sizes = {id(weight): weight.nbytes for module in modules for weight in module.parameters()}
    return round(sum(sizes.values()) / BYTES_PER_MIB)


def weight_files_mib(folder: Path) -> int:
    """Size of the `.safetensors` files in a folder (MiB, rounded, at least 1)."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return max(1, round(size / BYTES_PER_MIB))
