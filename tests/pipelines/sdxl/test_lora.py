"""LoRA files of the common trainers, merged into the weights when a checkpoint is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.lora import LoraFile
from ourvidz.pipelines.sdxl.options import SDXLOptions, parse_lora
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from tests.factories import image_job
from tests.pipelines.helpers import MAX_DIFFERENCE, difference, image_levels

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
KOHYA_LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q"
KOHYA_NAMES = {
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RANK = 2


def random_matrices(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`down` (rank, columns) and `up` (rows, rank)."""
    generator = torch.Generator().manual_seed(3)
    down = torch.randn(RANK, columns, generator=generator)
    return down, torch.randn(rows, RANK, generator=generator)


def kohya_name(component: str, layer: str) -> str:
    """The name that kohya-ss gives a layer of SDXL; it names the micro-conditioning as the original
    UNet does."""
    if component == "unet":
        return "lora_unet_" + KOHYA_NAMES.get(layer, layer).replace(".", "_")
    prefix = "lora_te1_" if component == "text_encoder" else "lora_te2_"
    inner = layer if layer.startswith(("text_model.", "text_projection")) else f"text_model.{layer}"
    return prefix + inner.replace(".", "_")


def layers_of(sdxl: SDXLPipeline) -> list[tuple[str, str]]:
    """Component and name of every linear and convolutional layer."""
    return [
        (component, name)
        for component in ("unet", "text_encoder", "text_encoder_2")
        for name, layer in getattr(sdxl._pipe, component).named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    ]


def weight_of(sdxl: SDXLPipeline, layer: str = f"unet.{LAYER}") -> torch.Tensor:
    component, _, inner = layer.partition(".")
    return getattr(sdxl._pipe, component).get_submodule(inner).weight.detach().clone()


def load(checkpoint: Checkpoint, *loras: LoraFile) -> SDXLPipeline:
    sdxl = SDXLPipeline(checkpoint, options=SDXLOptions(loras=loras))
    sdxl.load()
    return sdxl


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ((f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight", None), 1.0),
        ((f"unet.{LAYER}.lora.down.weight", f"unet.{LAYER}.lora.up.weight", None), 1.0),
        ((f"{KOHYA_LAYER}.lora_down.weight", f"{KOHYA_LAYER}.lora_up.weight", f"{KOHYA_LAYER}.alpha"), 0.5),
    ],
)
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_a_lora_is_added_to_the_weights(
    sdxl: SDXLPipeline,
    sdxl_checkpoint: Checkpoint,
    tmp_path: Path,
    keys: tuple[str, str, str | None],
    factor: float,
    scale: float,
) -> None:
    """In the formats of peft, diffusers and kohya-ss, scaled by alpha / rank."""
    original = weight_of(sdxl)
    down, up = random_matrices(*original.shape)
    tensors = {keys[0]: down, keys[1]: up}
    if keys[2]:
        tensors[keys[2]] = torch.tensor(RANK * factor)
    save_file(tensors, tmp_path / "hills.safetensors")
    merged = load(sdxl_checkpoint, LoraFile("hills", tmp_path / "hills.safetensors", scale))
    assert torch.allclose(weight_of(merged), original + scale * factor * (up @ down), atol=1e-5)
    assert merged.info()["loras"] == [f"hills@{scale:g}"]


def test_every_layer_of_a_kohya_file_is_scaled_by_its_alpha(
    sdxl: SDXLPipeline, sdxl_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Attention, feed-forward, projection, convolution and embedding layers: diffusers names their alphas
    differently, and a lost one makes the change of its layer rank / alpha times too strong."""
    generator = torch.Generator().manual_seed(5)
    tensors, expected = {}, {}
    for number, (component, name) in enumerate(layers_of(sdxl), start=1):
        original = weight_of(sdxl, f"{component}.{name}")
        down = torch.randn(RANK, *original.shape[1:], generator=generator)
        ones = (1,) * (original.ndim - 2)
        up = torch.randn(len(original), RANK, *ones, generator=generator)
        alpha = RANK / (1 + number % 7)
        key = kohya_name(component, name)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
        change = (up.flatten(1) @ down.flatten(1)).reshape(original.shape)
        expected[component, name] = original + alpha / RANK * change
    save_file(tensors, tmp_path / "hills.safetensors")
    merged = load(sdxl_checkpoint, LoraFile("hills", tmp_path / "hills.safetensors"))
    different = [
        layer
        for layer, weight in expected.items()
        if not torch.allclose(weight_of(merged, ".".join(layer)), weight, atol=1e-5)
    ]
    assert len(expected) == len(tensors) // 3
    assert different == []


@pytest.mark.parametrize(
    ("header", "factor"),
    [
        ({"unet.lora_alpha": 8, "unet.r": RANK}, 4.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 1}}, 0.5),
        ({"unet.lora_alpha": 2, "unet.use_rslora": True}, 2**0.5),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_peft_s_alpha_is_read_from_the_file_header(
    sdxl: SDXLPipeline, sdxl_checkpoint: Checkpoint, tmp_path: Path, header: dict[str, object], factor: float
) -> None:
    """Peft stores it there and not as a tensor."""
    original = weight_of(sdxl)
    down, up = random_matrices(*original.shape)
    tensors = {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}
    save_file(tensors, tmp_path / "h.safetensors", {"lora_adapter_metadata": json.dumps(header)})
    merged = load(sdxl_checkpoint, LoraFile("hills", tmp_path / "h.safetensors"))
    assert torch.allclose(weight_of(merged), original + factor * (up @ down), atol=1e-5)


@pytest.mark.parametrize("encoder", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize(
    "key_format", ["{0}.text_model.encoder.layers.0.self_attn.q_proj.{1}", "lora_{2}_{3}.{4}"]
)
def test_a_lora_can_change_the_text_encoders(
    sdxl: SDXLPipeline, sdxl_checkpoint: Checkpoint, tmp_path: Path, encoder: str, key_format: str
) -> None:
    """In two formats; both have a `text_model` level that present text encoders lack."""
    names = [name for name, _ in getattr(sdxl._pipe, encoder).named_modules()]
    [layer] = [f"{encoder}.{name}" for name in names if name.endswith("layers.0.self_attn.q_proj")]
    original = weight_of(sdxl, layer)
    down, up = random_matrices(*original.shape)
    short = {"text_encoder": "te1", "text_encoder_2": "te2"}[encoder]
    path = "text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {
        key_format.format(encoder, "lora_A.weight", short, path, "lora_down.weight"): down,
        key_format.format(encoder, "lora_B.weight", short, path, "lora_up.weight"): up,
    }
    if key_format.startswith("lora"):
        tensors[key_format.format("", "", short, path, "alpha")] = torch.tensor(float(RANK))
    save_file(tensors, tmp_path / "words.safetensors")
    merged = load(sdxl_checkpoint, LoraFile("words", tmp_path / "words.safetensors"))
    assert torch.allclose(weight_of(merged, layer), original + up @ down, atol=1e-5)


def test_a_lora_changes_the_image(sdxl: SDXLPipeline, sdxl_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The changed weights are in use."""
    down, up = random_matrices(*weight_of(sdxl).shape)
    tensors = {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}
    save_file(tensors, tmp_path / "hills.safetensors")
    merged = load(sdxl_checkpoint, LoraFile("hills", tmp_path / "hills.safetensors", 3.0))
    one, other = (image_levels(pipeline, image_job()) for pipeline in (sdxl, merged))
    assert difference(one, other) > MAX_DIFFERENCE


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"unet.mountains.lora_A.weight": torch.ones(2, 4)}, "lack unet.mountains.lora_B"),
        (
            {"unet.up.lora_A.weight": torch.ones(2, 4), "unet.up.lora_B.weight": torch.ones(4, 2)},
            "has no unet.up",
        ),
        (
            {
                f"unet.{LAYER}.lora_A.weight": torch.ones(2, 4),
                f"unet.{LAYER}.lora_B.weight": torch.ones(4, 2),
            },
            "another shape",
        ),
        ({"colours": torch.ones(3)}, "is a file of unknown kind .*, not a LoRA"),
        (
            {
                f"unet.{LAYER}.lora_A.weight": torch.ones(2, 4),
                f"unet.{LAYER}.lora_B.weight": torch.ones(4, 2),
                f"unet.{LAYER}.lora_B.bias": torch.ones(4),
            },
            "lora_B.bias is no part",
        ),
        (
            {
                f"{KOHYA_LAYER}.lora_down.weight": torch.ones(2, 4),
                f"{KOHYA_LAYER}.lora_up.weight": torch.ones(4, 2),
                f"{KOHYA_LAYER}.dora_scale": torch.ones(1, 4),
            },
            "LoRA odd: .*odd.safetensors is a DoRA, not a LoRA",
        ),
        (
            {f"{KOHYA_LAYER}.lokr_w1": torch.ones(4, 2)},
            "LoRA odd: .*odd.safetensors is a LoKr .LyCORIS., not a LoRA",
        ),
    ],
)
def test_a_file_that_does_not_match_the_checkpoint_is_a_load_error(
    sdxl_checkpoint: Checkpoint, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    """The message names the file and the weight, before any job runs without it."""
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ModelLoadError, match=message):
        load(sdxl_checkpoint, LoraFile("odd", tmp_path / "odd.safetensors"))


def test_a_missing_file_is_a_load_error(sdxl_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """So is a pickle, which can run code."""
    (tmp_path / "hills.pt").touch()
    for name in ("gone.safetensors", "hills.pt"):
        with pytest.raises(ModelLoadError, match=name):
            load(sdxl_checkpoint, LoraFile("hills", tmp_path / name))


def test_a_truncated_file_is_named(sdxl_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A checkpoint may be loaded with several files."""
    (tmp_path / "half.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    with pytest.raises(ModelLoadError, match=r"LoRA hills: .*half\.safetensors is truncated"):
        load(sdxl_checkpoint, LoraFile("hills", tmp_path / "half.safetensors"))


def test_parse_lora_reads_name_path_and_weight() -> None:
    """The format of the settings."""
    assert parse_lora("hills=/m/hills.safetensors") == LoraFile("hills", Path("/m/hills.safetensors"), 1.0)
    assert parse_lora("hills=/m/h.safetensors@-0.5") == LoraFile("hills", Path("/m/h.safetensors"), -0.5)
