"""The changing part of a diffusers scheduler: what its steps have added since its timesteps were set."""

from __future__ import annotations

from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

_SCALARS = (bool, int, float, str, type(None))


class SchedulerState:
    """Captures and restores the attributes of one scheduler, which must be at its start now.

    Tensors that no step has changed, and the configuration, are left out: a scheduler that is prepared in the
    same way has them too.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._initial = dict(vars(scheduler))
        self._versions = {
            name: value._version for name, value in self._initial.items() if isinstance(value, torch.Tensor)
        }

    def capture(self) -> tuple[dict[str, Any], Tensors]:
        """Copy the state to the CPU: a JSON object and the tensors that it names. Raises `TypeError` for a
        scheduler with attributes of other types."""
        tensors: Tensors = {}
        attributes = {
            name: _pack(value, f"scheduler.{name}", tensors)
            for name, value in vars(self._scheduler).items()
            if not self._is_unchanged(name, value)
        }
        return attributes, tensors

    def restore(self, attributes: dict[str, Any], tensors: Tensors, device: torch.device) -> None:
        """Set the captured attributes. Tensors that were on a GPU are moved to `device`."""
        for name, packed in attributes.items():
            setattr(self._scheduler, name, _unpack(packed, tensors, device))

    def _is_unchanged(self, name: str, value: object) -> bool:
        if value is not self._initial.get(name, _MISSING):
            return False
        if isinstance(value, torch.Tensor):
            return value._version == self._versions[name]
        # Lists are changed in place. What remains is the configuration, which is not.
        return not isinstance(value, list)


_MISSING = object()


def pack_tensor(tensor: torch.Tensor, name: str, tensors: Tensors) -> dict[str, Any]:
    """Copy a tensor to the CPU into `tensors[name]`, contiguous; return how to restore it."""
    tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    packed: dict[str, Any] = {"tensor": name, "cpu": tensor.device.type == "cpu"}
    if not tensor.is_contiguous():
        packed["stride"] = list(tensor.stride())
    return packed


def unpack_tensor(packed: dict[str, Any], tensors: Tensors, device: torch.device) -> torch.Tensor:
    """The tensor that `pack_tensor` copied, with the same strides: kernels are chosen by these."""
    stored = tensors[packed["tensor"]]
    target = torch.device("cpu") if packed["cpu"] else device
    if "stride" in packed:
        restored = torch.empty_strided(stored.shape, packed["stride"], dtype=stored.dtype, device=target)
    else:
        restored = torch.empty_like(stored, device=target)
    return restored.copy_(stored)


def _pack(value: Any, name: str, tensors: Tensors) -> Any:
    """A JSON value for an attribute: scalars as they are, lists as lists, tensors by name."""
    if isinstance(value, torch.Tensor):
        return pack_tensor(value, name, tensors)
    if isinstance(value, list):
        return [_pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    if type(value) in _SCALARS:
        return value
    raise TypeError(f"{name} is a {type(value).__name__}")


def _unpack(packed: Any, tensors: Tensors, device: torch.device) -> Any:
    if isinstance(packed, dict):
        return unpack_tensor(packed, tensors, device)
    if isinstance(packed, list):
        return [_unpack(item, tensors, device) for item in packed]
    return packed
