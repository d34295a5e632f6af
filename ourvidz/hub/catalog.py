"""The checkpoints that can be pulled: repositories, files, target folders, and settings that name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ourvidz.settings import Settings

GB = 1_000_000_000
DEFAULT_MODELS = ("sdxl", "wan", "qwen")
"""What is pulled if nothing is named: one checkpoint for each family."""
CARDS = ("README.md", "LICENSE*")

_DIFFUSERS = ("model_index.json", "scheduler/*", "text_encoder/*", "tokenizer/*", "vae/*", *CARDS)
_ADAPTER = "sdxl_models/ip-adapter_sdxl_vit-h.safetensors"
_ADAPTER_ENCODER = "models/image_encoder"


@dataclass(frozen=True, slots=True)
class Part:
    """One repository, and the folder into which its files go.

    `variable` is the setting with the repository. `patterns` are shell patterns of the wanted files, one
    path segment for each of theirs; `required` are files without which the repository is no such checkpoint.
    `licence` and `size_bytes` are documented facts of the default repository, for when the hub cannot be
    asked; None for another one.
    """

    name: str
    variable: str
    repository: str
    revision: str
    folder: Path
    patterns: tuple[str, ...]
    required: tuple[str, ...]
    licence: str | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class PullableModel:
    """A checkpoint as the workers use it: one or more parts, and the settings that name it (`variables`).
    `named` says whether the settings name it already."""

    name: str
    parts: tuple[Part, ...]
    variables: Mapping[str, Path]
    named: bool


def pullable_models(settings: Settings) -> dict[str, PullableModel]:
    """All checkpoints that can be pulled, by name. A checkpoint goes where its setting points to, otherwise
    into a folder of the models' directory."""
    return {
        model.name: model
        for model in (_sdxl(settings), _wan(settings), _qwen(settings), _vace(settings), _adapter(settings))
    }


def _sdxl(settings: Settings) -> PullableModel:
    folder = settings.sdxl_model or settings.models_dir / "sdxl"
    patterns = (*_DIFFUSERS, "text_encoder_2/*", "tokenizer_2/*", "unet/*")
    part = _part(
        settings.hub_sdxl, "OURVIDZ_HUB_SDXL", "sdxl", folder, patterns, licence="openrail++", gb=6.94
    )
    return PullableModel("sdxl", (part,), {"OURVIDZ_SDXL_MODEL": folder}, bool(settings.sdxl_model))


def _wan(settings: Settings) -> PullableModel:
    folder = settings.wan_model or settings.models_dir / "wan"
    # The last two are of image-to-video checkpoints, for `wan_generate.py`.
    patterns = (*_DIFFUSERS, "transformer/*", "image_encoder/*", "image_processor/*")
    part = _part(settings.hub_wan, "OURVIDZ_HUB_WAN", "wan", folder, patterns, licence="apache-2.0", gb=28.9)
    return PullableModel("wan", (part,), {"OURVIDZ_WAN_MODEL": folder}, bool(settings.wan_model))


def _vace(settings: Settings) -> PullableModel:
    folder = settings.wan_vace_model or settings.models_dir / "vace"
    patterns = (*_DIFFUSERS, "transformer/*")
    part = _part(
        settings.hub_vace, "OURVIDZ_HUB_VACE", "vace", folder, patterns, licence="apache-2.0", gb=19.0
    )
    return PullableModel("vace", (part,), {"OURVIDZ_WAN_VACE_MODEL": folder}, bool(settings.wan_vace_model))


def _qwen(settings: Settings) -> PullableModel:
    folder = settings.qwen_model or settings.models_dir / "qwen"
    required = ("config.json", "tokenizer_config.json")
    repositories = {"instruct": settings.hub_qwen_instruct, "base": settings.hub_qwen_base}
    parts = tuple(
        _part(
            repository,
            f"OURVIDZ_HUB_QWEN_{variant.upper()}",
            f"qwen {variant}",
            folder / variant,
            ("*",),
            licence="apache-2.0",
            gb=15.2,
            required=required,
        )
        for variant, repository in repositories.items()
    )
    return PullableModel("qwen", parts, {"OURVIDZ_QWEN_MODEL": folder}, bool(settings.qwen_model))


def _adapter(settings: Settings) -> PullableModel:
    """The adapter and its encoder are two settings of one repository, so these place nothing: it goes into
    the models' directory."""
    folder = settings.models_dir / "ip-adapter"
    required = (_ADAPTER, f"{_ADAPTER_ENCODER}/config.json")
    patterns = (_ADAPTER, f"{_ADAPTER_ENCODER}/*", *CARDS)
    part = _part(
        settings.hub_ip_adapter,
        "OURVIDZ_HUB_IP_ADAPTER",
        "ip-adapter",
        folder,
        patterns,
        licence="apache-2.0",
        gb=3.23,
        required=required,
    )
    variables = {
        "OURVIDZ_IP_ADAPTER": folder / _ADAPTER,
        "OURVIDZ_IP_ADAPTER_ENCODER": folder / _ADAPTER_ENCODER,
    }
    named = (settings.ip_adapter, settings.ip_adapter_encoder) == tuple(variables.values())
    return PullableModel("ip-adapter", (part,), variables, named)


def _part(
    repository: str,
    variable: str,
    name: str,
    folder: Path,
    patterns: tuple[str, ...],
    *,
    licence: str,
    gb: float,
    required: tuple[str, ...] = ("model_index.json",),
) -> Part:
    """A part of the repository that the setting `variable` names as `OWNER/NAME@REVISION`."""
    owner_and_name, _, revision = repository.partition("@")
    defaults = {field.validation_alias: field.default for field in Settings.model_fields.values()}
    documented = repository == defaults[variable]
    return Part(
        name,
        variable,
        owner_and_name,
        revision or "main",
        folder,
        patterns,
        required,
        licence if documented else None,
        round(gb * GB) if documented else None,
    )
