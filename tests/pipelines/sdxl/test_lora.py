from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.lora import LoraFile
from ourvidz.pipelines.sdxl.options import SDXLOptions, parse_lora
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline

MakeJob = Callable[..., ImageJob]

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
TRAINERS = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q"
RANK = 2


def matrices(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(3)
    return torch.randn(RANK, columns, generator=drawn), torch.randn(rows, RANK, generator=drawn)


def weights_of(sdxl: SDXLPipeline, layer: str = f"unet.{LAYER}") -> torch.Tensor:
    part, _, inner = layer.partition(".")
    return getattr(sdxl._pipe, part).get_submodule(inner).weight.detach().clone()


def loaded(tiny: Checkpoint, *loras: LoraFile) -> SDXLPipeline:
    sdxl = SDXLPipeline(tiny, options=SDXLOptions(loras=loras))
    sdxl.load()
    return sdxl


@pytest.mark.parametrize(
    ("names", "factor"),
    [
        ((f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight", None), 1.0),
        ((f"unet.{LAYER}.lora.down.weight", f"unet.{LAYER}.lora.up.weight", None), 1.0),
        ((f"{TRAINERS}.lora_down.weight", f"{TRAINERS}.lora_up.weight", f"{TRAINERS}.alpha"), 0.5),
    ],
)
@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_a_lora_file_is_added_to_the_weights(
    sdxl: SDXLPipeline,
    tiny: Checkpoint,
    tmp_path: Path,
    names: tuple[str, str, str | None],
    factor: float,
    weight: float,
) -> None:
    """Whichever of the known trainers wrote it; alpha over rank scales it as it did in training."""
    before = weights_of(sdxl)
    down, up = matrices(*before.shape)
    tensors = {names[0]: down, names[1]: up}
    if names[2]:
        tensors[names[2]] = torch.tensor(RANK * factor)
    save_file(tensors, tmp_path / "hills.safetensors")
    merged = loaded(tiny, LoraFile("hills", tmp_path / "hills.safetensors", weight))
    assert torch.allclose(weights_of(merged), before + weight * factor * (up @ down), atol=1e-5)
    assert merged.info()["loras"] == [f"hills@{weight:g}"]


@pytest.mark.parametrize(
    ("header", "factor"),
    [
        ({"unet.lora_alpha": 8, "unet.r": RANK}, 4.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 1}}, 0.5),
        ({"unet.lora_alpha": 2, "unet.use_rslora": True}, 2**0.5),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_a_file_by_peft_is_as_strong_as_it_was_in_training(
    sdxl: SDXLPipeline, tiny: Checkpoint, tmp_path: Path, header: dict[str, object], factor: float
) -> None:
    """Its alpha is no tensor beside the others: it stands in the file's header."""
    before = weights_of(sdxl)
    down, up = matrices(*before.shape)
    tensors = {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}
    save_file(tensors, tmp_path / "h.safetensors", {"lora_adapter_metadata": json.dumps(header)})
    merged = loaded(tiny, LoraFile("hills", tmp_path / "h.safetensors"))
    assert torch.allclose(weights_of(merged), before + factor * (up @ down), atol=1e-5)


@pytest.mark.parametrize("encoder", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize(
    "written", ["{0}.text_model.encoder.layers.0.self_attn.q_proj.{1}", "lora_{2}_{3}.{4}"]
)
def test_a_lora_reaches_the_text_encoders(
    sdxl: SDXLPipeline, tiny: Checkpoint, tmp_path: Path, encoder: str, written: str
) -> None:
    """By both kinds of names, which are older than those of today's encoders."""
    model = getattr(sdxl._pipe, encoder)
    [ours] = [f"{encoder}.{n}" for n, _ in model.named_modules() if n.endswith("layers.0.self_attn.q_proj")]
    before = weights_of(sdxl, ours)
    down, up = matrices(*before.shape)
    short = {"text_encoder": "te1", "text_encoder_2": "te2"}[encoder]
    path = "text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {
        written.format(encoder, "lora_A.weight", short, path, "lora_down.weight"): down,
        written.format(encoder, "lora_B.weight", short, path, "lora_up.weight"): up,
    }
    if written.startswith("lora"):
        tensors[written.format("", "", short, path, "alpha")] = torch.tensor(float(RANK))
    save_file(tensors, tmp_path / "words.safetensors")
    merged = loaded(tiny, LoraFile("words", tmp_path / "words.safetensors"))
    assert torch.allclose(weights_of(merged, ours), before + up @ down, atol=1e-5)


def test_a_lora_changes_the_picture(
    sdxl: SDXLPipeline, tiny: Checkpoint, tmp_path: Path, image_job: MakeJob
) -> None:
    """Weights that nothing reads would be loaded as well."""
    down, up = matrices(*weights_of(sdxl).shape)
    tensors = {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up}
    save_file(tensors, tmp_path / "hills.safetensors")
    merged = loaded(tiny, LoraFile("hills", tmp_path / "hills.safetensors", 3.0))
    one, other = (
        np.asarray(each.generate(image_job(), on_step=lambda *_: None).images[0]).astype(int)
        for each in (sdxl, merged)
    )
    assert np.abs(one - other).max() > 2


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
        ({"colours": torch.ones(3)}, "no LoRA weights"),
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
                f"{TRAINERS}.lora_down.weight": torch.ones(2, 4),
                f"{TRAINERS}.lora_up.weight": torch.ones(4, 2),
                f"{TRAINERS}.dora_scale": torch.ones(1, 4),
            },
            "dora_scale is no part",
        ),
        ({f"{TRAINERS}.lokr_w1": torch.ones(4, 2)}, f"LoRA odd: odd.safetensors cannot .*{TRAINERS}.lokr_w1"),
    ],
)
def test_a_file_that_does_not_fit_is_a_load_error(
    tiny: Checkpoint, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    """An operator reads which file and what of it, before any job runs without it."""
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ModelLoadError, match=message):
        loaded(tiny, LoraFile("odd", tmp_path / "odd.safetensors"))


def test_a_missing_file_is_a_load_error(tiny: Checkpoint, tmp_path: Path) -> None:
    """And a pickle is as good as missing: it can run code."""
    (tmp_path / "hills.pt").touch()
    for name in ("gone.safetensors", "hills.pt"):
        with pytest.raises(ModelLoadError, match=name):
            loaded(tiny, LoraFile("hills", tmp_path / name))


def test_a_damaged_file_is_named(tiny: Checkpoint, tmp_path: Path) -> None:
    """A download that broke off, among a checkpoint's many files."""
    (tmp_path / "half.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    with pytest.raises(ModelLoadError, match=r"LoRA hills: half\.safetensors cannot be read"):
        loaded(tiny, LoraFile("hills", tmp_path / "half.safetensors"))


def test_a_lora_is_written_with_its_name_and_weight() -> None:
    """As the settings have it."""
    assert parse_lora("hills=/m/hills.safetensors") == LoraFile("hills", Path("/m/hills.safetensors"), 1.0)
    assert parse_lora("hills=/m/h.safetensors@-0.5") == LoraFile("hills", Path("/m/h.safetensors"), -0.5)
