"""Names what a safetensors file holds, from the names and shapes in its header.

For messages about files in the wrong place: "… is a LoRA, not an SDXL checkpoint". Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from ourvidz.errors import ModelLoadError
from ourvidz.hub.weight_headers import Header, TensorInfo, read_header
from ourvidz.pipelines import single_file_names

WeightKind = Literal[
    "sdxl",
    "sdxl unet",
    "sdxl refiner",
    "sdxl inpainting",
    "edm",
    "sd1",
    "sd2",
    "sd3",
    "flux",
    "wan transformer",
    "wan vace",
    "wan vae",
    "lora",
    "dora",
    "loha",
    "lokr",
    "glora",
    "ia3",
    "oft",
    "differences",
    "lycoris",
    "ip-adapter",
    "controlnet",
    "embedding",
    "vae",
    "clip text encoder",
    "clip image encoder",
    "t5 text encoder",
    "language model",
    "diffusers unet",
    "small diffusers unet",
    "unknown",
]

KIND_NAMES: dict[WeightKind, str] = {
    "sdxl": "an SDXL checkpoint",
    "sdxl unet": "an SDXL UNet without text encoders",
    "sdxl refiner": "an SDXL refiner",
    "sdxl inpainting": "an SDXL inpainting checkpoint",
    "edm": "an SDXL checkpoint with EDM noise levels (Playground v2.5, CosXL)",
    "sd1": "an SD 1.5 checkpoint",
    "sd2": "an SD 2 checkpoint",
    "sd3": "an SD 3 checkpoint",
    "flux": "a Flux transformer",
    "wan transformer": "a Wan transformer",
    "wan vace": "a Wan VACE transformer",
    "wan vae": "a Wan VAE",
    "lora": "a LoRA",
    "dora": "a DoRA",
    "loha": "a LoHa (LyCORIS)",
    "lokr": "a LoKr (LyCORIS)",
    "glora": "a GLoRA (LyCORIS)",
    "ia3": "an IA³ adapter",
    "oft": "an OFT adapter",
    "differences": "an adapter of full differences (LyCORIS)",
    "lycoris": "an adapter of unknown kind",
    "ip-adapter": "an IP-Adapter",
    "controlnet": "a ControlNet",
    "embedding": "a textual inversion embedding",
    "vae": "a VAE",
    "clip text encoder": "a CLIP text encoder",
    "clip image encoder": "a CLIP image encoder",
    "t5 text encoder": "a T5 text encoder",
    "language model": "a language model",
    "diffusers unet": "the UNet of an SDXL folder",
    "small diffusers unet": "the UNet of an SD 1.5 or SD 2 folder",
    "unknown": "a file of unknown kind",
}
"""The kinds as messages name them, with their article."""

_ADAPTERS: dict[WeightKind, str] = {
    "dora": r"\.(?:dora_scale|lora_magnitude_vector)(?:\.|$)",
    "loha": r"\.hada_(?:w[12]_[ab]|t[12])$",
    "lokr": r"\.lokr_(?:w[12](?:_[ab])?|t2)$",
    "glora": r"^(?:lora|lycoris)_.*\.[ab][12]\.weight$",
    "ia3": r"\.on_input$|\.ia3_l(?:\.|$)",
    "oft": r"\.(?:oft_(?:blocks|diag|R)|boft_[RS])(?:\.|$)",
    "lora": r"\.lora_(?:A|B|up|down)\.|[._]lora\.(?:up|down)\.|lora_linear_layer\.",
    "differences": r"\.diff(?:_b)?$|\.[wb]_norm$",
}
"""Names of the weights of each kind of adapter. Of several kinds in a file the first one is its kind: a file
may have pairs of matrices for some layers and differences for others."""
_ADAPTER_PREFIXES = ("lora_unet_", "lora_te", "lora_transformer_", "lycoris_")
_ADAPTER = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _ADAPTERS.items()))
_LANGUAGE_MODEL = "model.layers.0.self_attn.q_proj."
_TEXT_EMBEDDINGS = {"clip_l", "clip_g", "emb_params", "string_to_param"}
_EDM_MARKS = {"edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"}
_REFINER_WIDTH = 1280
"""Width of the prompt embeddings of SDXL's refiner; the base model has 2048."""
_LATENT_CHANNELS = 4

Tensors = Mapping[str, TensorInfo]


def read_kind(path: Path) -> WeightKind:
    """What a safetensors file holds. Raises `ModelLoadError` for a file of another format, or a truncated
    one."""
    return kind_of(read_header(path))


def require(path: Path, *expected: WeightKind, wanted: str) -> Header:
    """The header of a file of one of the expected kinds. Raises `ModelLoadError` that names the file's kind,
    and `wanted`, what is needed in its place ("an SDXL checkpoint")."""
    header = read_header(path)
    require_kind(path, header, *expected, wanted=wanted)
    return header


def require_kind(path: Path, header: Header, *expected: WeightKind, wanted: str) -> None:
    """Raise `ModelLoadError` as `require` does, for a header that has been read from `path`."""
    kind = kind_of(header)
    if kind not in expected:
        first = next(iter(header.tensors), None)
        detail = f" (its first weight is {first!r:.80})" if kind == "unknown" else ""
        raise ModelLoadError(f"{path} is {KIND_NAMES[kind]}{detail}, not {wanted}.")


def kind_of(header: Header) -> WeightKind:
    """What a safetensors file with this header holds."""
    tensors = header.tensors
    adapters = {match.lastgroup for name in tensors if (match := _ADAPTER.search(name))}
    for kind in _ADAPTERS:
        if kind in adapters:
            return kind
    if any(name.startswith(_ADAPTER_PREFIXES) for name in tensors):
        return "lycoris"
    for kind, fits in _MARKS.items():
        if fits(tensors):
            return kind
    return _stable_diffusion_kind(tensors) or "unknown"


def _has(*parts: str) -> Callable[[Tensors], bool]:
    """Whether each of these is in the name of a tensor."""
    return lambda tensors: all(any(part in name for name in tensors) for part in parts)


def _begins(*prefixes: str) -> Callable[[Tensors], bool]:
    """Whether the name of a tensor begins with each of these."""
    return lambda tensors: all(any(name.startswith(prefix) for name in tensors) for prefix in prefixes)


def _any(*tests: Callable[[Tensors], bool]) -> Callable[[Tensors], bool]:
    return lambda tensors: any(test(tensors) for test in tests)


_MARKS: dict[WeightKind, Callable[[Tensors], bool]] = {
    "ip-adapter": _begins("image_proj.", "ip_adapter."),
    "embedding": lambda tensors: (
        0 < len(tensors) <= len(_TEXT_EMBEDDINGS) and tensors.keys() <= _TEXT_EMBEDDINGS
    ),
    "controlnet": _any(
        _begins("control_model."), _has("controlnet_cond_embedding."), _begins("input_hint_block.")
    ),
    "wan vace": _has("vace_blocks.0."),
    "wan transformer": _any(
        _has("head.modulation", "blocks.0.self_attn.q."),
        _has("condition_embedder.text_embedder.", "blocks.0.attn1.to_q."),
    ),
    "wan vae": _any(
        _has("decoder.middle.0.residual.0.gamma"), _has("decoder.mid_block.resnets.0.norm1.gamma")
    ),
    "sd3": _has("joint_blocks.0."),
    "flux": _has("double_blocks.0.", "single_blocks.0."),
    "t5 text encoder": _any(
        _begins("encoder.block.0.layer.0.SelfAttention."), _begins("token_embedding.", "blocks.0.attn.q.")
    ),
    "language model": _begins(_LANGUAGE_MODEL),
    "diffusers unet": _begins("down_blocks.0.resnets.0.", "conv_in.", "time_embedding.", "add_embedding."),
    "small diffusers unet": _begins("down_blocks.0.resnets.0.", "conv_in.", "time_embedding."),
    # Newer versions of transformers save CLIP's models without the names of their outer modules.
    "clip text encoder": _begins("embeddings.token_embedding.", "encoder.layers.0."),
    "clip image encoder": _begins("embeddings.patch_embedding.", "encoder.layers.0."),
}
"""By kind, a test of the tensors; the first that is true decides."""


def _stable_diffusion_kind(tensors: Tensors) -> WeightKind | None:
    """The kind of a file with components of Stable Diffusion."""
    components = single_file_names.components(tensors)
    if "unet" in components:
        unet = {name: tensors[original] for name, original in components["unet"].items()}
        has_text = {"text_encoder", "text_encoder_2"} <= components.keys()
        return _unet_kind(unet, tensors, has_text=has_text)
    if "vae" in components or _begins("decoder.up_blocks.0.", "decoder.conv_in.")(tensors):
        return "vae"
    if _has("vision_model.encoder.layers.0.")(tensors):
        return "clip image encoder"
    return "clip text encoder" if components else None


def _unet_kind(unet: Tensors, tensors: Tensors, *, has_text: bool) -> WeightKind:
    """The kind of a checkpoint by its UNet; `has_text`: it also has both text encoders of SDXL."""
    prefix = "model.diffusion_model."
    width = next(
        (info.shape[-1] for name, info in unet.items() if name.endswith("attn2.to_k.weight") and info.shape),
        0,
    )
    if not any(name.startswith(f"{prefix}label_emb.0.") for name in unet):
        return "sd2" if width == 1024 else "sd1"
    if width == _REFINER_WIDTH:
        return "sdxl refiner"
    conv_in = unet[f"{prefix}input_blocks.0.0.weight"].shape
    if len(conv_in) < 2 or conv_in[1] != _LATENT_CHANNELS:
        return "sdxl inpainting"
    if tensors.keys() & _EDM_MARKS:
        return "edm"
    return "sdxl" if has_text else "sdxl unet"
