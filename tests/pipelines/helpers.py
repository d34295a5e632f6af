"""Helpers that the tests of several pipelines share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from ourvidz.jobs.job import ImageJob, VideoJob
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.wan.pipeline import WanPipeline

MakeImageJob = Callable[..., ImageJob]
MakeVideoJob = Callable[..., VideoJob]

MAX_DIFFERENCE = 2
"""The largest difference of 8-bit levels between equal images: batches and threads round differently."""

Pixels = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


def no_progress(done: int, total: int) -> None:
    """An `on_step` that does nothing."""


def levels(images: Sequence[Image]) -> Pixels:
    """The 8-bit levels of images of one size, (images, height, width, 3), as signed integers."""
    return np.stack([np.asarray(image) for image in images]).astype(int)


def image_levels(sdxl: SDXLPipeline, job: ImageJob, reference: Image | None = None) -> Pixels:
    """The images that a job generates, (images, height, width, 3)."""
    return levels(sdxl.generate(job, reference=reference, on_step=no_progress).images)


def clip_levels(wan: WanPipeline, job: VideoJob, **inputs: Any) -> Pixels:
    """The frames that a job generates, (frames, height, width, 3). `inputs` are arguments of `generate`."""
    return levels(wan.generate(job, **inputs, on_step=no_progress).frames)


def difference(one: Pixels | Image, other: Pixels | Image) -> int:
    """The largest difference between the levels of two images or clips."""
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


@contextmanager
def before_forward(module: torch.nn.Module, function: Callable[[torch.Tensor], object]) -> Iterator[None]:
    """Call `function` with the first input, or `hidden_states`, before every forward pass of `module`."""

    def hook(_: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        function(args[0] if args else kwargs["hidden_states"])

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def batch_sizes(module: torch.nn.Module) -> Iterator[list[int]]:
    """Records the batch size of every forward pass of `module`."""
    sizes: list[int] = []
    with before_forward(module, lambda tensor: sizes.append(len(tensor))):
        yield sizes


@contextmanager
def longest_edges(module: torch.nn.Module) -> Iterator[list[int]]:
    """Records the longer edge of the input of every forward pass of `module`."""
    edges: list[int] = []
    with before_forward(module, lambda tensor: edges.append(max(tensor.shape[-2:]))):
        yield edges


@contextmanager
def raising(module: torch.nn.Module, error: Exception) -> Iterator[None]:
    """Every forward pass of `module` raises `error`."""

    def fail(_: torch.Tensor) -> None:
        raise error

    with before_forward(module, fail):
        yield


@contextmanager
def out_of_memory(module: torch.nn.Module, when: Callable[[torch.Tensor], bool]) -> Iterator[list[int]]:
    """Forward passes of `module` raise an out-of-memory error if `when` is true of their input; records the
    batch size of every pass, failed ones included."""
    sizes: list[int] = []

    def fail(tensor: torch.Tensor) -> None:
        sizes.append(len(tensor))
        if when(tensor):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with before_forward(module, fail):
        yield sizes


def first_passes(count: int) -> Callable[[torch.Tensor], bool]:
    """True for the first `count` passes, for `out_of_memory`."""
    remaining = iter([True] * count)
    return lambda _: next(remaining, False)


def passes(*numbers: int) -> Callable[[torch.Tensor], bool]:
    """True for the passes with these numbers, counted from 1, for `out_of_memory`."""
    current = iter(range(1, 1_000_000))
    return lambda _: next(current) in numbers
