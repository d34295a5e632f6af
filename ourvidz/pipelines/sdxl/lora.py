"""Reads LoRA files and adds them to a pipeline's weights, so that they cost nothing per step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines import weight_kinds

_DOWN_UP_SUFFIXES = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
_LEGACY_SUFFIXES = (("_lora.down.weight", ".lora.down.weight"), ("_lora.up.weight", ".lora.up.weight"))
"""Old files write `to_q_lora.down` for `to_q.lora.down`."""
_MAX_ERROR_CHARS = 200
"""An error of diffusers may list every weight of the file."""
_TEXT_ENCODER_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA file, the name that settings and jobs use for it, and its scale."""

    name: str
    path: Path
    weight: float = 1.0

    def label(self) -> str:
        """`name@weight`."""
        return f"{self.name}@{self.weight:g}"


@dataclass(frozen=True, slots=True)
class _LayerLora:
    """The low-rank change of one layer: `up @ down`, with `down` (rank, in) and `up` (out, rank)."""

    module: str
    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None

    def fits(self, weight: torch.Tensor) -> bool:
        """Whether `up @ down` has the shape of `weight`."""
        rank, columns = self.down.flatten(1).shape
        return self.up.flatten(1).shape == (weight.shape[0], rank) and len(weight) * columns == weight.numel()

    @torch.no_grad()
    def add_to(self, weight: torch.Tensor, scale: float) -> None:
        """Add `scale * alpha / rank * up @ down` to `weight` in place; without an alpha, `scale * up @
        down`."""
        rank = self.down.shape[0]
        factor = scale * (1.0 if self.alpha is None else self.alpha / rank)
        up, down = (matrix.to(weight.device, torch.float32).flatten(1) for matrix in (self.up, self.down))
        weight += (factor * (up @ down)).reshape(weight.shape).to(weight.dtype)


class LoraWeights:
    """The changes that one LoRA file makes to the UNet and the text encoders of one pipeline."""

    def __init__(self, changes: Sequence[tuple[_LayerLora, torch.nn.Module]]) -> None:
        self._changes = changes

    @property
    def layers(self) -> list[torch.nn.Module]:
        """The layers that it changes, without duplicates."""
        return list(dict.fromkeys(layer for _, layer in self._changes))

    @property
    def changes_text_encoder(self) -> bool:
        """Whether it changes a text encoder."""
        return any(change.module.startswith("text_encoder") for change, _ in self._changes)

    def add(self, scale: float) -> None:
        """Add the changes, times `scale`, to the layers' weights in place."""
        for change, layer in self._changes:
            change.add_to(weight_of(layer), scale)


def weight_of(layer: torch.nn.Module) -> torch.Tensor:
    """The weight tensor of a linear or convolutional layer."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def merge_lora(pipe: StableDiffusionXLPipeline, file: LoraFile) -> None:
    """Add a LoRA file to the weights permanently. Raises `ModelLoadError` as `read_lora` does."""
    read_lora(pipe, file).add(file.weight)


def read_lora(pipe: StableDiffusionXLPipeline, file: LoraFile) -> LoraWeights:
    """Read a LoRA file and match it to the layers of `pipe`, without changing them.

    Raises `ModelLoadError` if the file is not a LoRA, holds weights that would be ignored, or does not match
    the layers of this checkpoint.
    """
    if file.path.suffix != ".safetensors" or not file.path.is_file():
        raise ModelLoadError(f"LoRA {file.name}: there is no .safetensors file {file.path}.")
    try:
        weight_kinds.require(file.path, "lora", wanted="a LoRA")
    except ModelLoadError as error:
        raise ModelLoadError(f"LoRA {file.name}: {error.message}") from None
    tensors, alphas, peft_config = _read_tensors(pipe, file)
    alphas_by_module = {_module_of_alpha(key): float(alpha) for key, alpha in (alphas or {}).items()}
    changes = list(_layer_loras(tensors, alphas_by_module, peft_config or {}))
    if not changes:
        raise ModelLoadError(f"LoRA {file.name}: {file.path.name} holds no LoRA weights.")
    _check_all_used(file, tensors, alphas_by_module, changes)
    matched = [(change, _find_layer(pipe, change.module, file)) for change in changes]
    for change, layer in matched:
        if not change.fits(weight_of(layer)):
            raise ModelLoadError(f"LoRA {file.name}: {change.module} has another shape in this checkpoint.")
    return LoraWeights(matched)


def _read_tensors(pipe: StableDiffusionXLPipeline, file: LoraFile) -> tuple[dict[str, Any], Any, Any]:
    """The file's tensors, its alphas and its peft config; each of the last two is None if the file does not
    store it separately. Raises `ModelLoadError` with the name of the file."""
    try:
        # Diffusers translates the weight names of kohya-ss, the most common trainer.
        tensors: tuple[dict[str, Any], Any, Any] = StableDiffusionXLPipeline.lora_state_dict(
            str(file.path),
            unet_config=pipe.unet.config,
            local_files_only=True,
            use_safetensors=True,
            return_lora_metadata=True,
        )
    except Exception as error:
        message = " ".join(str(error).split())[:_MAX_ERROR_CHARS]
        raise ModelLoadError(f"LoRA {file.name}: {file.path.name} cannot be read: {message}") from error
    return tensors


def _check_all_used(
    file: LoraFile, tensors: Iterable[str], alphas: Iterable[str], changes: Sequence[_LayerLora]
) -> None:
    """Raise `ModelLoadError` for weights or alphas that would be ignored: a part of a LoRA makes other images
    than the whole. `alphas` are the modules that have one."""
    suffixes = (*(suffix for pair in _DOWN_UP_SUFFIXES for suffix in pair), ".alpha")
    used = {change.module + suffix for change in changes for suffix in suffixes}
    unused = [key for key in tensors if _modern_key(key) not in used]
    changed = {change.module for change in changes}
    unused += [f"{module}.alpha" for module in alphas if module not in changed]
    if unused:
        raise ModelLoadError(f"LoRA {file.name}: {unused[0]} is no part of a LoRA that can be added.")


def _layer_loras(
    tensors: dict[str, torch.Tensor], alphas: dict[str, float], peft_config: dict[str, Any]
) -> Iterator[_LayerLora]:
    """The change of each layer. `alphas` are those that diffusers returns apart from the tensors, by module;
    `peft_config` is peft's config for each component of the pipeline."""
    by_key = {_modern_key(key): tensor for key, tensor in tensors.items()}
    for key, down in tensors.items():
        for down_suffix, up_suffix in _DOWN_UP_SUFFIXES:
            if not _modern_key(key).endswith(down_suffix):
                continue
            module = _modern_key(key).removesuffix(down_suffix)
            up = by_key.get(module + up_suffix)
            if up is None:
                raise ModelLoadError(f"The LoRA weights lack {module}{up_suffix}.")
            alpha = _peft_alpha(module, len(down), peft_config)
            if alpha is None:
                alpha = alphas.get(module)
            if alpha is None and f"{module}.alpha" in by_key:
                alpha = float(by_key[f"{module}.alpha"])
            yield _LayerLora(module, down, up, alpha)


def _module_of_alpha(key: str) -> str:
    """The module of an alpha that diffusers returns: it files the alpha under the name of the `down` weight
    where that contains `_lora.` or `.lora_linear_layer.`, and under the name of the module elsewhere."""
    name = _modern_key(key.removesuffix(".alpha"))
    for down_suffix, _ in _DOWN_UP_SUFFIXES:
        name = name.removesuffix(down_suffix)
    return name


def _peft_alpha(module: str, rank: int, peft_config: dict[str, Any]) -> float | None:
    """The alpha of a layer according to peft's config in the file's header; None if there is none."""
    component, _, inner = module.partition(".")
    alpha = peft_config.get(f"{component}.lora_alpha")
    for pattern, override in (peft_config.get(f"{component}.alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", inner):
            alpha = override
            break
    if alpha is None:
        return None
    # Rank-stabilised LoRA divides by the square root of the rank instead of the rank.
    return float(alpha) * (rank**0.5 if peft_config.get(f"{component}.use_rslora") else 1.0)


def _modern_key(key: str) -> str:
    """The key with the suffix of an old file replaced by the present one."""
    for old, new in _LEGACY_SUFFIXES:
        if key.endswith(old):
            return key.removesuffix(old).replace(".processor", "") + new
    return key


def _find_layer(pipe: StableDiffusionXLPipeline, module: str, file: LoraFile) -> torch.nn.Module:
    """The layer `unet.….to_q`, `text_encoder.….q_proj`, … of this pipeline."""
    component, _, inner = module.partition(".")
    model = getattr(pipe, component, None)
    if isinstance(model, torch.nn.Module):
        layers: dict[str, torch.nn.Module] = dict(model.named_modules())
        for name in _possible_names(inner):
            if isinstance(getattr(layers.get(name), "weight", None), torch.Tensor):
                return layers[name]
    raise ModelLoadError(f"LoRA {file.name}: this checkpoint has no {module}.")


def _possible_names(inner: str) -> Iterator[str]:
    """The names that a layer may have in the model: `to_out` is a list in diffusers, the text encoders name
    their attention layers differently, and newer ones have no `text_model` level."""
    parent, _, last = inner.rpartition(".")
    yield f"{inner}.0" if last == "to_out" else inner
    renamed = f"{parent}.{_TEXT_ENCODER_NAMES.get(last, last)}"
    yield renamed
    yield renamed.removeprefix("text_model.")
