from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.wan.checkpoint import find_wan
from training.untrained.sdxl import build


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_tiny_checkpoint_is_the_same_wherever_it_is_built(tiny: Checkpoint, tmp_path: Path) -> None:
    """Two machines with the same seed must make the same picture; weights drawn elsewhere must not matter."""
    torch.manual_seed(1)
    build(tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(tiny.path)


def test_building_leaves_the_random_numbers_of_the_process_alone(tmp_path: Path) -> None:
    """A library that reseeds its host makes other draws repeat."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(tmp_path / "tiny")
    assert torch.equal(torch.rand(3), expected)


def test_the_tiny_unet_stays_tiny(tiny: Checkpoint) -> None:
    """The demo and the tests run it on a laptop's CPU."""
    unet = UNet2DConditionModel.from_pretrained(tiny.path / "unet", local_files_only=True)
    assert sum(weight.numel() for weight in unet.parameters()) < 1_200_000


def test_without_a_model_the_packaged_checkpoint_is_found(tiny: Checkpoint, tmp_path: Path) -> None:
    """What ships is what runs on a bare machine. A package that lacks it says so: pictures of noise would
    look like a result."""
    with pytest.raises(ModelLoadError, match=r"There is no checkpoint folder .*tiny-sdxl"):
        find_sdxl(None, packaged=tmp_path)
    copytree(tiny.path, tmp_path / "tiny-sdxl")
    assert find_sdxl(None, packaged=tmp_path) == Checkpoint(tmp_path / "tiny-sdxl", "tiny")


def test_the_packaged_wan_checkpoint_is_found_unless_another_is_given(tmp_path: Path) -> None:
    """A diffusers folder in the package, or the one in the settings."""
    for folder in (tmp_path / "tiny-wan", tmp_path / "given"):
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
    assert find_wan(None, packaged=tmp_path) == Checkpoint(tmp_path / "tiny-wan", "tiny")
    assert find_wan(tmp_path / "given", packaged=tmp_path) == Checkpoint(tmp_path / "given", "folder")


@pytest.mark.parametrize("variant", ["instruct", "base"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_qwen_variant_is_found_under_its_name(tmp_path: Path, variant: str, listed: bool) -> None:
    """Both stand in one folder, and so do their checksums, if there are any."""
    for family in (tmp_path / "tiny-qwen", tmp_path / "given"):
        (family / variant).mkdir(parents=True)
        (family / variant / "config.json").write_text("{}")
        if listed:
            (family / "SHA256SUMS").write_text("")
    tiny = find_qwen(None, variant, packaged=tmp_path)
    given = find_qwen(tmp_path / "given", variant, packaged=tmp_path)
    assert (tiny.path, tiny.kind) == (tmp_path / "tiny-qwen" / variant, "tiny")
    assert (given.path, given.kind) == (tmp_path / "given" / variant, "folder")
    assert tiny.root == (tmp_path / "tiny-qwen" if listed else tiny.path)
    assert tiny.name == (f"tiny-qwen/{variant}" if listed else variant)


def test_a_wan_or_qwen_checkpoint_that_is_missing_is_named(tmp_path: Path) -> None:
    """An operator must read which folder was looked in, and for what."""
    (tmp_path / "empty").mkdir()
    for find, words in (
        (lambda: find_wan(None, packaged=tmp_path), "There is no checkpoint folder .*tiny-wan"),
        (lambda: find_wan(tmp_path / "none"), "There is no checkpoint folder .*none"),
        (lambda: find_wan(tmp_path / "empty"), "empty has no model_index.json"),
        (lambda: find_qwen(None, "base", packaged=tmp_path), "tiny-qwen/base has no config.json"),
        (
            lambda: find_qwen(tmp_path / "empty", "instruct", packaged=tmp_path),
            "empty/instruct has no config",
        ),
    ):
        with pytest.raises(ModelLoadError, match=words):
            find()


def test_a_folder_is_found(tiny: Checkpoint, tmp_path: Path) -> None:
    """A diffusers folder is taken as it is."""
    assert find_sdxl(tiny.path) == Checkpoint(tiny.path, "folder")


def test_a_folder_of_half_precision_files_only_loads(
    tiny: Checkpoint, tmp_path: Path, image_job: Callable[..., ImageJob]
) -> None:
    """Most downloads of SDXL hold only the fp16 variant."""
    from diffusers import StableDiffusionXLPipeline

    half = tmp_path / "half"
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        tiny.path, local_files_only=True, dtype=torch.float16
    )
    pipeline.save_pretrained(half, variant="fp16")
    found = find_sdxl(half)
    assert found.variant == "fp16"
    assert find_sdxl(tiny.path).variant is None
    sdxl = SDXLPipeline(found, device=torch.device("cpu"))
    assert sdxl.generate(image_job(), on_step=lambda *_: None).images


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "no SDXL checkpoint at"),
        ("empty", "no model_index.json"),
        ("model.ckpt", "not a .safetensors file"),
        ("model.safetensors", r"expected in .*model\.config"),
        ("partly.safetensors", r"lacks text_encoder_2/config.json, tokenizer_2/tokenizer_config.json"),
    ],
)
def test_what_is_missing_is_said_exactly(tiny: Checkpoint, tmp_path: Path, name: str, words: str) -> None:
    """An operator must be able to repair an installation from the one line they see."""
    (tmp_path / "empty").mkdir()
    for file in ("model.ckpt", "model.safetensors", "partly.safetensors"):
        (tmp_path / file).write_bytes(b"")
    configs = copytree(tiny.path, tmp_path / "partly.config")
    (configs / "text_encoder_2" / "config.json").unlink()
    (configs / "tokenizer_2" / "tokenizer_config.json").unlink()
    with pytest.raises(ModelLoadError, match=words):
        find_sdxl(tmp_path / name)


def test_a_damaged_single_file_is_a_load_error(tiny: Checkpoint, tmp_path: Path) -> None:
    """A download that broke off must not look like a worker that hangs."""
    (tmp_path / "model.safetensors").write_bytes(b"half a download")
    found = find_sdxl(tmp_path / "model.safetensors", config=tiny.path)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors could not be loaded"):
        SDXLPipeline(found).load()


def test_a_single_file_makes_the_pictures_of_its_folder(
    tiny: Checkpoint, sdxl: SDXLPipeline, tmp_path: Path, image_job: Callable[..., ImageJob]
) -> None:
    """Most SDXL checkpoints are one file in the original layout; loading must find every weight, offline."""
    file = tmp_path / "landscape.safetensors"
    safetensors.torch.save_file(original_layout(sdxl._pipe), file)
    copytree(
        tiny.path, tmp_path / "landscape.config", ignore=lambda _, names: [n for n in names if "safet" in n]
    )
    found = find_sdxl(file)
    assert (found.kind, found.name) == ("single file", "landscape")
    single = SDXLPipeline(found, cap=128)
    one, other = (
        np.asarray(pipeline.generate(image_job(), on_step=lambda *_: None).images[0]).astype(int)
        for pipeline in (sdxl, single)
    )
    assert np.abs(one - other).max() <= 2


# What the authors of SDXL called the parts that diffusers renamed.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
}
VAE = {
    "down_blocks": "down",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "resnets": "block",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
} | {f"up_blocks.{at}.": f"up.{3 - at}." for at in range(4)}
OPEN_CLIP = {
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
    ".self_attn": ".attn",
}


def renamed(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


def original_layout(pipe: object) -> dict[str, torch.Tensor]:
    """The weights of a pipeline under the names of the original single file."""
    weights: dict[str, torch.Tensor] = {}
    for name, weight in pipe.unet.state_dict().items():
        target = renamed(name, UNET)
        weights["model.diffusion_model." + (renamed(target, RESNET) if ".resnets." in name else target)] = (
            weight
        )
    for name, weight in pipe.vae.state_dict().items():
        shaped = weight[:, :, None, None] if "attentions" in name and weight.dim() == 2 else weight
        weights["first_stage_model." + renamed(name, VAE)] = shaped
    for name, weight in pipe.text_encoder.state_dict().items():
        weights["conditioner.embedders.0.transformer.text_model." + name.removeprefix("text_model.")] = weight
    second = pipe.text_encoder_2.state_dict()
    for name, weight in second.items():
        target = "conditioner.embedders.1.model." + renamed(name, OPEN_CLIP)
        if "text_projection" in name:
            weights[target.removesuffix(".weight")] = weight.T
        elif ".q_proj." in name:
            joined = [second[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            weights[target.replace(".q_proj.", ".in_proj_")] = torch.cat(joined)
        elif ".k_proj." not in name and ".v_proj." not in name:
            weights[target] = weight
    return {name: weight.contiguous().clone() for name, weight in weights.items()}
