"""LoRA files, added to the weights: while they are in, they cost a step nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open

from ourvidz.errors import ModelLoadError

_PAIRS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
_ATTENTION_NAMES = (("_lora.down.weight", ".lora.down.weight"), ("_lora.up.weight", ".lora.up.weight"))
"""How old files write `to_q_lora.down` for `to_q.lora.down`."""
_SAID_CHARS = 200
"""Of diffusers' error, which can name every weight there is."""
_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True, slots=True)
class Lora:
    """One LoRA file and how much of it is added; `name` is what it is called here."""

    name: str
    path: Path
    weight: float = 1.0

    def told(self) -> str:
        """`name@weight`."""
        return f"{self.name}@{self.weight:g}"


@dataclass(frozen=True, slots=True)
class _Change:
    """What one layer of the file adds: `up · down`, (out, rank) and (rank, in)."""

    module: str
    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None

    def fits(self, kept: torch.Tensor) -> bool:
        """Whether `up · down` has the shape of these weights."""
        rank, columns = self.down.flatten(1).shape
        return self.up.flatten(1).shape == (kept.shape[0], rank) and len(kept) * columns == kept.numel()

    @torch.no_grad()
    def add(self, kept: torch.Tensor, weight: float) -> None:
        """Add it, times `weight`, to these weights."""
        rank = self.down.shape[0]
        factor = weight * (1.0 if self.alpha is None else self.alpha / rank)
        up, down = (part.to(kept.device, torch.float32).flatten(1) for part in (self.up, self.down))
        kept += (factor * (up @ down)).reshape(kept.shape).to(kept.dtype)


class LoraWeights:
    """What a LoRA file adds to the UNet and the text encoders of one pipeline."""

    def __init__(self, parts: Sequence[tuple[_Change, torch.nn.Module]]) -> None:
        self._parts = parts

    @property
    def layers(self) -> list[torch.nn.Module]:
        """The layers it changes, each once."""
        return list(dict.fromkeys(layer for _, layer in self._parts))

    @property
    def reaches_words(self) -> bool:
        """Whether it changes a text encoder."""
        return any(change.module.startswith("text_encoder") for change, _ in self._parts)

    def add(self, weight: float) -> None:
        """Add it, times `weight`."""
        for change, layer in self._parts:
            change.add(weights_of(layer), weight)


def weights_of(layer: torch.nn.Module) -> torch.Tensor:
    """The weights of a layer that a file can change."""
    kept = layer.weight
    assert isinstance(kept, torch.Tensor)
    return kept


def merge(pipe: StableDiffusionXLPipeline, lora: Lora) -> None:
    """Add a LoRA file for good. `ModelLoadError` as `read` raises it."""
    read(pipe, lora).add(lora.weight)


def read(pipe: StableDiffusionXLPipeline, lora: Lora) -> LoraWeights:
    """What a LoRA file adds to this pipeline; nothing is changed yet.

    `ModelLoadError` when the file is no LoRA, holds other weights too, or names a layer this checkpoint has
    not.
    """
    if lora.path.suffix != ".safetensors" or not lora.path.is_file():
        raise ModelLoadError(f"LoRA {lora.name}: there is no .safetensors file {lora.path}.")
    tensors, alphas, trained = _tensors(pipe, lora)
    changes = list(_changes(tensors, alphas or {}, trained or {}))
    if not changes:
        raise ModelLoadError(f"LoRA {lora.name}: {lora.path.name} holds no LoRA weights.")
    _need_all(lora, tensors, changes)
    parts = [(change, _layer(pipe, change.module, lora)) for change in changes]
    for change, layer in parts:
        if not change.fits(weights_of(layer)):
            raise ModelLoadError(f"LoRA {lora.name}: {change.module} has another shape in this checkpoint.")
    return LoraWeights(parts)


def _tensors(pipe: StableDiffusionXLPipeline, lora: Lora) -> tuple[dict[str, Any], Any, Any]:
    """The file's weights, its alphas and how peft was set, the last two None where they are not apart.
    `ModelLoadError` names the file: whatever else is being loaded is not to blame."""
    try:
        # Weights of the trainer most people use have other names; diffusers knows how to translate them.
        found: tuple[dict[str, Any], Any, Any] = StableDiffusionXLPipeline.lora_state_dict(
            str(lora.path),
            unet_config=pipe.unet.config,
            local_files_only=True,
            use_safetensors=True,
            return_lora_metadata=True,
        )
    except Exception as error:
        said = " ".join(str(error).split())[:_SAID_CHARS]
        raise ModelLoadError(f"LoRA {lora.name}: {lora.path.name} cannot be read: {said}") from error
    return found


def _need_all(lora: Lora, tensors: Iterable[str], changes: Iterable[_Change]) -> None:
    """Half of what was trained is another picture: `ModelLoadError` for weights that would be left out."""
    with safe_open(lora.path, "pt") as file:
        # diffusers drops these and says so in a warning.
        left = [key for key in file.keys() if "dora_scale" in key]  # noqa: SIM118  it is no dictionary
    endings = (*(ending for pair in _PAIRS for ending in pair), ".alpha")
    used = {change.module + ending for change in changes for ending in endings}
    left += [key for key in tensors if _modern(key) not in used]
    if left:
        raise ModelLoadError(f"LoRA {lora.name}: {left[0]} is no part of a LoRA that can be added.")


def _changes(
    tensors: dict[str, torch.Tensor], alphas: dict[str, Any], trained: dict[str, Any]
) -> Iterator[_Change]:
    """What the file holds. `alphas` are apart where diffusers has translated the names, `trained` is how peft
    was set for each part of the pipeline, where the file says so."""
    named = {_modern(key): tensor for key, tensor in tensors.items()}
    for key, down in tensors.items():
        for first, second in _PAIRS:
            if not _modern(key).endswith(first):
                continue
            module = _modern(key).removesuffix(first)
            up = named.get(module + second)
            if up is None:
                raise ModelLoadError(f"The LoRA weights lack {module}{second}.")
            alpha = _peft_alpha(module, len(down), trained)
            if alpha is None:
                alpha = alphas.get(f"{key}.alpha", named.get(f"{module}.alpha"))
            yield _Change(module, down, up, None if alpha is None else float(alpha))


def _peft_alpha(module: str, rank: int, trained: dict[str, Any]) -> float | None:
    """The alpha of a layer by peft's settings, which stand in the file's header; None where none do."""
    part, _, inner = module.partition(".")
    alpha = trained.get(f"{part}.lora_alpha")
    for pattern, other in (trained.get(f"{part}.alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", inner):
            alpha = other
            break
    if alpha is None:
        return None
    # Rank-stabilised: over the root of the rank instead of the rank.
    return float(alpha) * (rank**0.5 if trained.get(f"{part}.use_rslora") else 1.0)


def _modern(key: str) -> str:
    for old, new in _ATTENTION_NAMES:
        if key.endswith(old):
            return key.removesuffix(old).replace(".processor", "") + new
    return key


def _layer(pipe: StableDiffusionXLPipeline, module: str, lora: Lora) -> torch.nn.Module:
    """`unet.….to_q`, `text_encoder.….q_proj`, … of this pipeline."""
    part, _, inner = module.partition(".")
    model = getattr(pipe, part, None)
    if isinstance(model, torch.nn.Module):
        layers: dict[str, torch.nn.Module] = dict(model.named_modules())
        for name in _spellings(inner):
            if isinstance(getattr(layers.get(name), "weight", None), torch.Tensor):
                return layers[name]
    raise ModelLoadError(f"LoRA {lora.name}: this checkpoint has no {module}.")


def _spellings(inner: str) -> Iterator[str]:
    """What a layer may be called: `to_out` is a list in diffusers, the text encoders call their attention's
    parts otherwise, and some have lost a level of their names."""
    head, _, last = inner.rpartition(".")
    yield f"{inner}.0" if last == "to_out" else inner
    theirs = f"{head}.{_TEXT_NAMES.get(last, last)}"
    yield theirs
    yield theirs.removeprefix("text_model.")
