"""Loads SDXL from a single file in the layout of its release. Reads nothing but local files.

The conversion of names and shapes is diffusers' own; see `single_file_names` for what is done before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_diffusers_clip_model_from_ldm,
)
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ourvidz import log
from ourvidz.errors import ModelLoadError
from ourvidz.hub.weight_headers import read_header
from ourvidz.pipelines.sdxl import prediction, schedulers
from ourvidz.pipelines.single_file_names import Component, components
from ourvidz.prompts.vocabulary import read_vocabulary

_log = log.get(__name__)

Weights = Mapping[str, torch.Tensor]

_COMPONENT_NAMES: dict[Component, str] = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "first text encoder",
    "text_encoder_2": "second text encoder",
}
_PROJECTION = "conditioner.embedders.1.model.text_projection"
_IGNORED = ("position_ids",)
"""Endings of weights that older versions of the libraries saved and newer ones compute."""


def read_single_file(
    file: Path, config: Path, dtype: torch.dtype, *, vae: Any = None
) -> diffusers.StableDiffusionXLPipeline:
    """The pipeline in a `.safetensors` file, with the configs and tokenizers of the folder `config`. `vae`
    replaces that of the file. Raises `ModelLoadError` naming a component without weights, missing ones, or a
    prediction that no scheduler supports.
    """
    scheduler = _read_scheduler(file, config)
    weights = _read_components(file)
    unet = _read_diffusers_model(diffusers.UNet2DConditionModel, "unet", weights, config, dtype)
    if vae is None:
        vae = _read_diffusers_model(diffusers.AutoencoderKL, "vae", weights, config, dtype)
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=_read_text_encoder(CLIPTextModel, "text_encoder", weights, config, dtype),
        text_encoder_2=_read_text_encoder(
            CLIPTextModelWithProjection, "text_encoder_2", weights, config, dtype
        ),
        tokenizer=read_tokenizer(config / "tokenizer"),
        tokenizer_2=read_tokenizer(config / "tokenizer_2"),
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=bool(
            _read_json(config / "model_index.json").get("force_zeros_for_empty_prompt", True)
        ),
        add_watermarker=False,
    )


def read_vae(path: Path, config: Path, dtype: torch.dtype) -> Any:
    """The VAE of SDXL in a `.safetensors` file, whose config is in the folder `config`, or in a folder of its
    own. Raises what the libraries raise."""
    if path.is_dir():
        full = (path / "diffusion_pytorch_model.safetensors").is_file()
        variant = None if full else "fp16"
        return diffusers.AutoencoderKL.from_pretrained(
            path, use_safetensors=True, local_files_only=True, variant=variant, dtype=dtype
        )
    weights = load_file(path)
    names = components(weights).get("vae")
    if names is not None:
        weights = {name: weights[original] for name, original in names.items()}
    return _read_diffusers_model(diffusers.AutoencoderKL, "vae", {"vae": weights}, config, dtype)


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a folder; one without a vocabulary has that of CLIP's release. Raises `ModelLoadError`
    if no package provides it."""
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return tokenizer
    vocabulary, merges = read_vocabulary()
    config = _read_json(folder / "tokenizer_config.json")
    tokens = {name: config[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    texts = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    arguments: dict[str, Any] = {"vocab": vocabulary, "merges": merges, **texts}
    return CLIPTokenizer(model_max_length=int(config["model_max_length"]), **arguments)


def _read_scheduler(file: Path, config: Path) -> Any:
    """The scheduler of the config folder, for what the file says that its UNet predicts."""
    document = _read_json(config / "scheduler" / "scheduler_config.json")
    overrides = prediction.scheduler_overrides(read_header(file), document)
    if overrides:
        _log.info("single_file_scheduler", file=file.name, **overrides)
    class_name = _read_json(config / "model_index.json")["scheduler"][1]
    return schedulers.from_config(class_name, document, overrides)


def _read_components(file: Path) -> dict[Component, dict[str, torch.Tensor]]:
    """The weights of each component by their names in the release. Mapped, not read."""
    tensors = load_file(file)
    weights = {
        component: {
            name: tensors[original] for name, original in names.items() if not name.endswith(_IGNORED)
        }
        for component, names in components(tensors).items()
    }
    # Some converters wrote the projection as a linear layer: its transpose, under another name.
    projected = weights.get("text_encoder_2", {})
    if f"{_PROJECTION}.weight" in projected:
        projected.setdefault(_PROJECTION, projected.pop(f"{_PROJECTION}.weight").T)
    return weights


def _read_diffusers_model(
    kind: Any, component: Component, weights: Mapping[Component, Weights], config: Path, dtype: torch.dtype
) -> Any:
    """The UNet or the VAE."""
    present = _present(component, weights)
    options = {"config": str(config), "subfolder": component, "local_files_only": True}
    try:
        return kind.from_single_file(present, dtype=dtype, **options).eval()
    except NotImplementedError as error:
        # What diffusers did not find has no values, and cannot be converted to the dtype.
        raise _lacks(component, _missing(kind, component, present, config)) from error


def _read_text_encoder(
    kind: Any, component: Component, weights: Mapping[Component, Weights], config: Path, dtype: torch.dtype
) -> Any:
    present = _present(component, weights)
    options = {"config": str(config), "subfolder": component, "local_files_only": True}
    try:
        return create_diffusers_clip_model_from_ldm(kind, checkpoint=present, torch_dtype=dtype, **options)
    except NotImplementedError as error:
        raise _lacks(component, []) from error


def _missing(kind: Any, component: Component, present: dict[str, torch.Tensor], config: Path) -> list[str]:
    """The weights of the UNet or the VAE of this config that the file lacks, by their names in diffusers."""
    document = kind.load_config(str(config), subfolder=component, local_files_only=True)
    convert = convert_ldm_unet_checkpoint if component == "unet" else convert_ldm_vae_checkpoint
    with torch.device("meta"):
        expected = kind.from_config(document).state_dict()
    return sorted(expected.keys() - convert(present, config=document).keys())


def _lacks(component: Component, missing: list[str]) -> ModelLoadError:
    such_as = f", such as {missing[0]}" if missing else ""
    return ModelLoadError(
        f"The file lacks {len(missing) or 'some'} weights of the {_COMPONENT_NAMES[component]}{such_as}:"
        " its structure is not that of the config folder."
    )


def _present(component: Component, weights: Mapping[Component, Weights]) -> dict[str, torch.Tensor]:
    if component not in weights:
        raise ModelLoadError(f"The file holds no {_COMPONENT_NAMES[component]}.")
    return dict(weights[component])


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text())
