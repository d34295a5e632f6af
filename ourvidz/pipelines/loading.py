"""What loading the weights of any model family has in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ourvidz.errors import ModelLoadError
from ourvidz.hub.manifest import mark_in_use
from ourvidz.hub.weight_headers import is_training_average, read_header
from ourvidz.pipelines import checksums, devices
from ourvidz.pipelines.checkpoints import Checkpoint

BYTES_PER_MIB = 1 << 20
HALF_BYTES = 2
"""Size of a number in half precision."""


@contextmanager
def loading(checkpoint: Checkpoint) -> Iterator[None]:
    """Verify the checkpoint's checksums, keep its files from being deleted while this process runs, silence
    the libraries, and convert any exception inside this context into `ModelLoadError`."""
    mark_in_use(checkpoint.path)
    checksums.verify(checkpoint.root)
    with reading(checkpoint):
        yield


@contextmanager
def reading(checkpoint: Checkpoint) -> Iterator[None]:
    """Silence the libraries, and convert any exception inside this context into `ModelLoadError`: for files
    that were verified before."""
    devices.quiet_libraries()
    try:
        yield
    except Exception as error:
        # The libraries raise OSError, ValueError, SafetensorError, RuntimeError and more.
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelLoadError(f"{checkpoint.path} could not be loaded: {line}") from error


def weights_mib(components: Iterable[object]) -> int:
    """Size of the weights (MiB) of those components that are torch modules; shared weights count once."""
    return round(weights_bytes(components) / BYTES_PER_MIB)


def weights_bytes(components: Iterable[object]) -> int:
    """Size of the weights in bytes, as `weights_mib` counts it."""
    modules = [component for component in components if isinstance(component, torch.nn.Module)]
    sizes = {id(weight): weight.nbytes for module in modules for weight in module.parameters()}
    return sum(sizes.values())


def checkpoint_mib(checkpoint: Checkpoint, dtype: torch.dtype, *, only: Sequence[str] = ()) -> int:
    """Size that the weights of a checkpoint take once they are loaded as `dtype` (MiB, rounded, at least 1),
    from the headers of its files; of several variants the one that is loaded, of a single file without the
    averages of its training. `only`: of the files whose name or folder contains one of these words."""
    path, variant = checkpoint.path, checkpoint.variant(half=dtype.itemsize == HALF_BYTES)
    files = [path] if path.is_file() else [*path.rglob("*.safetensors"), *path.rglob("*.pth")]
    if path.is_dir():
        files = [file for file in files if (".fp16" in file.name) == (variant == "fp16")]
    if only:
        folder = path if path.is_dir() else path.parent
        names = {file: str(file.relative_to(folder)).lower() for file in files}
        files = [file for file in files if any(word in names[file] for word in only)]
    return max(1, round(sum(_loaded_bytes(file, dtype) for file in files) / BYTES_PER_MIB))


def _loaded_bytes(file: Path, dtype: torch.dtype) -> int:
    """Bytes of the weights of one file as `dtype`; of a pickle, which is not opened, its size."""
    if file.suffix != ".safetensors":
        return file.stat().st_size
    tensors = read_header(file).tensors
    loaded = [info for name, info in tensors.items() if not is_training_average(name)]
    return int(sum(math.prod(info.shape) for info in loaded)) * dtype.itemsize
