"""Checks for NaN and infinities, which would be delivered as a black image."""

from __future__ import annotations

import torch

from ourvidz import log
from ourvidz.errors import InternalError

_log = log.get(__name__)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether `tensor` has no NaN and no infinity. Waits for the device."""
    return bool(torch.isfinite(tensor).all())


def check_finite(tensor: torch.Tensor, model: str) -> None:
    """Raise `InternalError` if the output of `model` has NaN or infinities: an overflow of its dtype, or
    broken weights."""
    if is_finite(tensor):
        return
    dtype = str(tensor.dtype).removeprefix("torch.")
    _log.error("output_not_finite", model=model, dtype=dtype)
    raise InternalError(f"The output of the {model} has NaN or infinite values ({dtype}).")
