"""Checkpoints in the layout of the Wan release: equal weights by other names generate the same clip."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import diffusers
import pytest
import safetensors.torch
import torch

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.base import SourceVideo
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import video_job
from tests.pipelines.helpers import MAX_DIFFERENCE, clip_levels, difference
from training.untrained.wan_image_models import build_vace

Weights = dict[str, torch.Tensor]

TRANSFORMER = (
    (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"scale_shift_table", "modulation"),
    (r"\.proj_in\.", ".before_proj."),
    (r"\.proj_out\.", ".after_proj."),
    (r"attn1", "self_attn"),
    (r"attn2", "cross_attn"),
    (r"\.to_out\.0\.", ".o."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"ffn\.net\.0\.proj", "ffn.0"),
    (r"ffn\.net\.2", "ffn.2"),
    (r"\.norm2\.", ".norm3."),
)
"""Patterns of diffusers' weight names, and the names in the release. So for the other tables."""
VAE = (
    (r"^post_quant_conv", "conv2"),
    (r"^quant_conv", "conv1"),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"mid_block\.attentions\.0", "middle.1"),
    (r"mid_block\.resnets\.0", "middle.0"),
    (r"mid_block\.resnets\.1", "middle.2"),
    (r"encoder\.down_blocks", "encoder.downsamples"),
    (r"\.norm1\.gamma", ".residual.0.gamma"),
    (r"(middle\.\d|samples\.\d+|resnets\.\d)\.conv1\.", r"\1.residual.2."),
    (r"\.norm2\.gamma", ".residual.3.gamma"),
    (r"(middle\.\d|samples\.\d+|resnets\.\d)\.conv2\.", r"\1.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
TEXT = (
    (r"^encoder\.embed_tokens\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"^encoder\.block\.", "blocks."),
    (r"layer\.0\.layer_norm", "norm1"),
    (r"layer\.1\.layer_norm", "norm2"),
    (r"layer\.0\.SelfAttention\.relative_attention_bias", "pos_embedding.embedding"),
    (r"layer\.0\.SelfAttention", "attn"),
    (r"layer\.1\.DenseReluDense\.wi_0", "ffn.gate.0"),
    (r"layer\.1\.DenseReluDense\.wi_1", "ffn.fc1"),
    (r"layer\.1\.DenseReluDense\.wo", "ffn.fc2"),
)


def rename(name: str, names: tuple[tuple[str, str], ...]) -> str:
    for diffusers_pattern, release_name in names:
        name = re.sub(diffusers_pattern, release_name, name)
    return name


def release_vae(weights: Weights) -> Weights:
    """The VAE's weights by their names in the release, which numbers the three residual blocks and the
    upsampler of each decoder block consecutively."""

    def consecutive_number(match: re.Match[str]) -> str:
        block, kind, index = match.groups()
        return f"decoder.upsamples.{4 * int(block) + (3 if kind == 'upsamplers' else int(index))}"

    pattern = r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)"
    return {
        rename(re.sub(pattern, consecutive_number, name), VAE): weight for name, weight in weights.items()
    }


def release_config(pipe: diffusers.WanPipeline, model: str) -> dict[str, object]:
    config = pipe.transformer.config
    return {
        "_class_name": "WanModel" if model == "t2v" else "VaceWanModel",
        "dim": config.num_attention_heads * config.attention_head_dim,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "in_dim": config.in_channels,
        "model_type": model,
        "num_heads": config.num_attention_heads,
        "num_layers": config.num_layers,
        "out_dim": config.out_channels,
        "text_len": 512,
    }


def write_release(pipe: diffusers.WanPipeline, folder: Path, *, model: str = "t2v", shards: int = 1) -> None:
    """Write the components of a pipeline in the layout of the release."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(release_config(pipe, model)))
    weights = {
        rename(name, TRANSFORMER): weight.contiguous()
        for name, weight in pipe.transformer.state_dict().items()
    }
    names = sorted(weights)
    files = {
        f"diffusion_pytorch_model-0000{shard + 1}.safetensors": names[shard::shards]
        for shard in range(shards)
    }
    if shards == 1:
        files = {"diffusion_pytorch_model.safetensors": names}
    else:
        index = {"weight_map": {name: file for file, part in files.items() for name in part}}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for file, part in files.items():
        safetensors.torch.save_file({name: weights[name] for name in part}, folder / file)
    torch.save(release_vae(pipe.vae.state_dict()), folder / "Wan2.1_VAE.pth")
    text_encoder = {
        rename(name, TEXT): weight
        for name, weight in pipe.text_encoder.state_dict().items()
        if name != "shared.weight"
    }
    torch.save(text_encoder, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    pipe.tokenizer.save_pretrained(folder / "google/umt5-xxl")


@pytest.fixture(scope="module")
def pipe(wan_checkpoint: Checkpoint) -> diffusers.WanPipeline:
    """The pipeline with random weights, and a narrow VAE with the structure of Wan 2.1's."""
    pipe = diffusers.WanPipeline.from_pretrained(wan_checkpoint.path, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        pipe.register_modules(vae=diffusers.AutoencoderKLWan(base_dim=4))
    return pipe


@pytest.fixture(scope="module")
def folder(pipe: diffusers.WanPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in both layouts, in `diffusers` and `release`."""
    root = tmp_path_factory.mktemp("layouts")
    pipe.save_pretrained(root / "diffusers")
    write_release(pipe, root / "release")
    return root


def test_the_release_generates_the_clip_of_the_diffusers_folder(
    folder: Path, pipe: diffusers.WanPipeline, tmp_path: Path
) -> None:
    """Every weight must be found, offline, in one file or in several."""
    write_release(pipe, tmp_path / "sharded", shards=3)
    job = video_job(frames=5, steps=2, negative_prompt="fog")
    expected = clip_levels(WanPipeline(find_wan(folder / "diffusers")), job)
    for release in (folder / "release", tmp_path / "sharded"):
        checkpoint = find_wan(release)
        assert (checkpoint.kind, checkpoint.name) == ("original", release.name)
        wan = WanPipeline(checkpoint)
        assert difference(clip_levels(wan, job), expected) <= MAX_DIFFERENCE
        assert (wan.info()["model"], wan.info()["kind"]) == ("t2v", "original")


def test_in_half_precision_the_same_weights_stay_in_float32(folder: Path) -> None:
    """Norms, the time embedding and the VAE need it."""
    pipelines = [
        WanPipeline(find_wan(folder / name), dtype=torch.bfloat16) for name in ("release", "diffusers")
    ]
    for wan in pipelines:
        wan.load()
    for component in ("transformer", "vae", "text_encoder"):
        dtypes, expected = (
            {
                name: weight.dtype
                for name, weight in getattr(wan.components.pipe, component).named_parameters()
            }
            for wan in pipelines
        )
        assert dtypes == expected, component


def test_vace_can_be_loaded_from_the_release(
    folder: Path, pipe: diffusers.WanPipeline, tmp_path: Path
) -> None:
    """Alone, and beside a text-to-video checkpoint."""
    build_vace(tmp_path / "vace", text_to_video=folder / "diffusers")
    vace = diffusers.WanVACEPipeline.from_pretrained(tmp_path / "vace", local_files_only=True)
    write_release(vace, tmp_path / "release", model="vace")
    one, other = (
        clip_levels(WanPipeline(find_wan(tmp_path / name)), video_job(), source=SourceVideo())
        for name in ("vace", "release")
    )
    assert difference(one, other) <= MAX_DIFFERENCE
    both = WanPipeline(find_wan(folder / "release"), vace=find_wan(tmp_path / "release"))
    both.load()
    assert both.components.vace.transformer.vace_blocks[0].proj_out.weight.abs().sum() > 0


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "Wan2.1_VAE.pth",
        "google/umt5-xxl/tokenizer.json",
    ],
)
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, file: str) -> None:
    """An operator must be able to repair a download from one line."""
    incomplete = copytree(folder / "release", tmp_path / "incomplete")
    (incomplete / file).unlink()
    with pytest.raises(ModelLoadError, match=rf"the layout of the Wan release and lacks {file}\."):
        find_wan(incomplete)


def test_all_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    """Shards that only the index lists, too."""
    incomplete = copytree(folder / "release", tmp_path / "incomplete")
    (incomplete / "config.json").unlink()
    (incomplete / "diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (incomplete / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (incomplete / "one.safetensors").touch()
    with pytest.raises(ModelLoadError, match=r"lacks config\.json, two\.safetensors\."):
        find_wan(incomplete)


def test_code_in_a_pickle_is_never_run(folder: Path, tmp_path: Path) -> None:
    """A `.pth` file can run code unless torch is told to read weights only."""

    class Malicious:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    harmful = copytree(folder / "release", tmp_path / "harmful")
    torch.save({"encoder.conv1.weight": Malicious()}, harmful / "Wan2.1_VAE.pth")
    with pytest.raises(ModelLoadError, match="harmful could not be loaded"):
        WanPipeline(find_wan(harmful)).load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", ["lacks", "has"])
def test_missing_and_unknown_weights_are_refused(folder: Path, tmp_path: Path, change: str) -> None:
    """A missing weight would be noise in every clip."""
    changed = copytree(folder / "release", tmp_path / "changed")
    file = changed / "models_t5_umt5-xxl-enc-bf16.pth"
    weights = torch.load(file, weights_only=True)
    if change == "lacks":
        del weights["norm.weight"]
    else:
        weights["decoder.weight"] = torch.zeros(1)
    torch.save(weights, file)
    with pytest.raises(ModelLoadError, match=f"UMT5EncoderModel {change} "):
        WanPipeline(find_wan(changed)).load()


def test_image_to_video_models_in_this_layout_are_refused(folder: Path, tmp_path: Path) -> None:
    """Their image encoder has its own layout, which is not supported."""
    changed = copytree(folder / "release", tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"model_type": "i2v"}))
    with pytest.raises(ModelLoadError, match=r"image-to-video checkpoint in the layout.*diffusers layout"):
        WanPipeline(find_wan(changed)).load()
