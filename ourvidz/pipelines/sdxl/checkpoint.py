"""Finds an SDXL checkpoint on disk: a diffusers folder or a single `.safetensors` file."""

from __future__ import annotations

import json
from pathlib import Path

from ourvidz.errors import ModelLoadError
from ourvidz.hub.weight_headers import Header
from ourvidz.pipelines import single_file_names, weight_kinds
from ourvidz.pipelines.checkpoints import PACKAGED, Checkpoint, require_diffusers_folder, sdxl_config_folder
from ourvidz.pipelines.folder_weights import DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS, require_weights
from ourvidz.pipelines.sdxl.prediction import scheduler_overrides
from ourvidz.prompts.vocabulary import find_vocabulary

_CONFIG_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
)
"""Files that a single-file checkpoint needs in its config folder."""
_DTYPES = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")
_QUANTIZED = (".scale_weight", ".weight_scale", ".absmax", ".quant_map")
"""Endings of what quantized weights need to be read."""
_INTEGERS = ("position_ids",)
_VOCABULARIES = ("tokenizer.json", "vocab.json")


def find_sdxl(
    model: Path | None, *, config: Path | None = None, vae: Path | None = None, packaged: Path = PACKAGED
) -> Checkpoint:
    """The SDXL checkpoint at `model`, or the packaged tiny one if `model` is None.

    `config` is the config folder of a single file; the default is `<stem>.config/` beside it, or else that
    of SDXL base. `vae` is a `.safetensors` file or a folder whose VAE replaces that of the checkpoint. Raises
    `ModelLoadError` naming what is missing, or what the file is if it is no SDXL checkpoint.
    """
    if vae is not None:
        _check_vae(vae)
    if model is None:
        return Checkpoint(require_diffusers_folder(packaged / "tiny-sdxl"), "tiny", vae=vae)
    if model.is_dir():
        _check_components(require_diffusers_folder(model), own_vae=vae is None)
        return Checkpoint(model, "folder", vae=vae)
    if not model.is_file():
        raise ModelLoadError(f"There is no SDXL checkpoint at {model}.")
    header = weight_kinds.require(model, "sdxl", wanted="an SDXL checkpoint")
    if model.suffix != ".safetensors":
        raise ModelLoadError(f"{model} is not named .safetensors, but it is such a file: rename it.")
    _check_dtypes(model, header)
    if vae is None and "vae" not in single_file_names.components(header.tensors):
        raise ModelLoadError(
            f"{model} holds no VAE: set OURVIDZ_SDXL_VAE to the VAE of SDXL, a .safetensors file or a folder."
        )
    folder = sdxl_config_folder(model, config, packaged=packaged)
    _check_config(model, folder)
    _check_scheduler(model, header, folder)
    return Checkpoint(model, "single file", folder, vae=vae)


def _check_components(folder: Path, *, own_vae: bool) -> None:
    """Raise `ModelLoadError` for weight files of a diffusers folder that are missing or of another kind.
    `own_vae`: its VAE is loaded."""
    try:
        components = json.loads((folder / "model_index.json").read_text()).keys()
    except (OSError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{folder}/model_index.json cannot be read: {error}") from None
    if "unet" in components:
        require_weights(folder / "unet", DIFFUSERS_WEIGHTS, "diffusers unet", wanted="the UNet of SDXL")
    if "vae" in components and own_vae:
        require_weights(folder / "vae", DIFFUSERS_WEIGHTS, "vae", wanted="a VAE")
    for name in ("text_encoder", "text_encoder_2"):
        if name in components:
            require_weights(
                folder / name, TRANSFORMERS_WEIGHTS, "clip text encoder", wanted="a CLIP text encoder"
            )


def _check_vae(vae: Path) -> None:
    """Raise `ModelLoadError` unless there is a VAE at this path."""
    if vae.is_dir():
        if not (vae / "config.json").is_file() or not any(vae.glob("*.safetensors")):
            raise ModelLoadError(f"{vae} holds no VAE: it lacks config.json or .safetensors weights.")
        require_weights(vae, DIFFUSERS_WEIGHTS, "vae", wanted="a VAE")
    elif vae.is_file():
        weight_kinds.require(vae, "vae", wanted="a VAE")
    else:
        raise ModelLoadError(f"There is no VAE at {vae}.")


def _check_config(model: Path, folder: Path) -> None:
    """Raise `ModelLoadError` if the config folder of a single file lacks files."""
    if not folder.is_dir():
        raise ModelLoadError(f"There is no folder {folder} with the configs of {model.name}.")
    missing = [name for name in _CONFIG_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelLoadError(f"{folder} lacks {', '.join(missing)}, which {model.name} needs.")
    if not all(
        any((folder / name / file).is_file() for file in _VOCABULARIES)
        for name in ("tokenizer", "tokenizer_2")
    ):
        find_vocabulary()


def _check_dtypes(model: Path, header: Header) -> None:
    """Raise `ModelLoadError` for quantized weights: read as plain numbers they would generate noise."""
    for names in single_file_names.components(header.tensors).values():
        for name in names.values():
            dtype = header.tensors[name].dtype
            plain = dtype in _DTYPES or name.endswith(_INTEGERS)
            if not plain or name.endswith(_QUANTIZED):
                raise ModelLoadError(f"{model} is quantized ({name}: {dtype}), which is not supported.")


def _check_scheduler(model: Path, header: Header, folder: Path) -> None:
    """Raise `ModelLoadError` if no scheduler supports what the header says that the UNet predicts."""
    try:
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        scheduler_overrides(header, config)
    except (OSError, ValueError, TypeError) as error:
        raise ModelLoadError(f"{folder}/scheduler/scheduler_config.json cannot be read: {error}") from None
    except ModelLoadError as error:
        raise ModelLoadError(f"{model}: {error.message}") from None
