"""Checkpoints in the layout of the Wan release: the same weights under other names make the same clip."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.base import ReferenceImages, SourceVideo
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import video_job
from training.untrained.wan_image_models import build_vace

Weights = dict[str, torch.Tensor]
MakeJob = Callable[..., VideoJob]
LEVELS = 2

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
"""What the authors of Wan called the parts that diffusers renamed."""
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


def renamed(name: str, names: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in names:
        name = re.sub(ours, theirs, name)
    return name


def release_vae(weights: Weights) -> Weights:
    """The decoder's blocks are counted through, three of them and what makes larger."""

    def counted(found: re.Match[str]) -> str:
        block, kind, at = found.groups()
        return f"decoder.upsamples.{4 * int(block) + (3 if kind == 'upsamplers' else int(at))}"

    pattern = r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)"
    return {renamed(re.sub(pattern, counted, name), VAE): weight for name, weight in weights.items()}


def write_release(pipe: diffusers.WanPipeline, folder: Path, *, model: str = "t2v", shards: int = 1) -> None:
    """The parts of a pipeline under the names and in the files of the release."""
    folder.mkdir()
    config = pipe.transformer.config
    shape = {
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
    (folder / "config.json").write_text(json.dumps(shape))
    weights = {renamed(n, TRANSFORMER): w.contiguous() for n, w in pipe.transformer.state_dict().items()}
    names = sorted(weights)
    files = {f"diffusion_pytorch_model-0000{at + 1}.safetensors": names[at::shards] for at in range(shards)}
    if shards == 1:
        files = {"diffusion_pytorch_model.safetensors": names}
    else:
        index = {"weight_map": {name: file for file, held in files.items() for name in held}}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for file, held in files.items():
        safetensors.torch.save_file({name: weights[name] for name in held}, folder / file)
    torch.save(release_vae(pipe.vae.state_dict()), folder / "Wan2.1_VAE.pth")
    text = {renamed(n, TEXT): w for n, w in pipe.text_encoder.state_dict().items() if n != "shared.weight"}
    torch.save(text, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    pipe.tokenizer.save_pretrained(folder / "google/umt5-xxl")


@pytest.fixture(scope="module")
def pipe(wan_checkpoint: Checkpoint) -> diffusers.WanPipeline:
    """The untrained checkpoint with a VAE of Wan 2.1's shape, thin."""
    found = diffusers.WanPipeline.from_pretrained(wan_checkpoint.path, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        found.register_modules(vae=diffusers.AutoencoderKLWan(base_dim=4))
    return found


@pytest.fixture(scope="module")
def folder(pipe: diffusers.WanPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layouts of it, side by side."""
    root = tmp_path_factory.mktemp("layouts")
    pipe.save_pretrained(root / "diffusers")
    write_release(pipe, root / "release")
    return root


def clip(wan: WanPipeline, job: VideoJob, references: ReferenceImages | None = None) -> np.ndarray:
    made = wan.generate(job, references=references, on_step=lambda *_: None)
    return np.stack([np.asarray(frame) for frame in made.frames]).astype(int)


def test_the_release_makes_the_clip_of_the_diffusers_folder(
    folder: Path, pipe: diffusers.WanPipeline, tmp_path: Path
) -> None:
    """Many have only these files; every weight must be found, offline, in one file or in several."""
    write_release(pipe, tmp_path / "sharded", shards=3)
    job = video_job(frames=5, steps=2, negative_prompt="fog")
    expected = clip(WanPipeline(find_wan(folder / "diffusers")), job)
    for release in (folder / "release", tmp_path / "sharded"):
        found = find_wan(release)
        assert (found.kind, found.name) == ("original", release.name)
        wan = WanPipeline(found)
        assert np.abs(clip(wan, job) - expected).max() <= LEVELS
        assert (wan.info()["model"], wan.info()["kind"]) == ("t2v", "original")


def test_in_half_precision_the_same_weights_stay_single(folder: Path) -> None:
    """Norms, the embedding of the time and the VAE lose too much in half."""
    ours, theirs = (
        WanPipeline(find_wan(folder / name), dtype=torch.bfloat16) for name in ("release", "diffusers")
    )
    ours.load()
    theirs.load()
    for part in ("transformer", "vae", "text_encoder"):
        found, expected = (
            {name: weight.dtype for name, weight in getattr(wan.components.pipe, part).named_parameters()}
            for wan in (ours, theirs)
        )
        assert found == expected, part


def test_vace_in_the_release_s_layout_is_read_too(
    folder: Path, pipe: diffusers.WanPipeline, tmp_path: Path
) -> None:
    """As the checkpoint of its own tasks, and beside one for text."""
    build_vace(tmp_path / "vace", text_to_video=folder / "diffusers")
    theirs = diffusers.WanVACEPipeline.from_pretrained(tmp_path / "vace", local_files_only=True)
    write_release(theirs, tmp_path / "release", model="vace")
    job, source = video_job(frames=5), SourceVideo()
    one, other = (
        np.stack([np.asarray(frame) for frame in made.frames]).astype(int)
        for made in (
            WanPipeline(find_wan(tmp_path / name)).generate(job, source=source, on_step=lambda *_: None)
            for name in ("vace", "release")
        )
    )
    assert np.abs(one - other).max() <= LEVELS
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
    """An operator repairs a download by the names in the one line they see."""
    lacking = copytree(folder / "release", tmp_path / "lacking")
    (lacking / file).unlink()
    with pytest.raises(ModelLoadError, match=rf"the layout of the Wan release and lacks {file}\."):
        find_wan(lacking)


def test_all_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    """At once, and also shards that only the index knows."""
    lacking = copytree(folder / "release", tmp_path / "lacking")
    (lacking / "config.json").unlink()
    (lacking / "diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (lacking / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (lacking / "one.safetensors").touch()
    with pytest.raises(ModelLoadError, match=r"lacks config\.json, two\.safetensors\."):
        find_wan(lacking)


def test_a_pickle_that_is_more_than_weights_is_never_run(folder: Path, tmp_path: Path) -> None:
    """A `.pth` file is a program unless torch is told otherwise."""

    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    harmful = copytree(folder / "release", tmp_path / "harmful")
    torch.save({"encoder.conv1.weight": Evil()}, harmful / "Wan2.1_VAE.pth")
    with pytest.raises(ModelLoadError, match="harmful could not be loaded"):
        WanPipeline(find_wan(harmful)).load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", ["lacks", "has"])
def test_other_weights_than_the_model_s_are_refused(folder: Path, tmp_path: Path, change: str) -> None:
    """A weight that is left out would be noise in every clip."""
    other = copytree(folder / "release", tmp_path / "other")
    file = other / "models_t5_umt5-xxl-enc-bf16.pth"
    weights = torch.load(file, weights_only=True)
    if change == "lacks":
        del weights["norm.weight"]
    else:
        weights["decoder.weight"] = torch.zeros(1)
    torch.save(weights, file)
    with pytest.raises(ModelLoadError, match=f"UMT5EncoderModel {change} "):
        WanPipeline(find_wan(other)).load()


def test_image_to_video_in_this_layout_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    """Its image encoder has a layout of its own, which nobody reads here."""
    other = copytree(folder / "release", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "i2v"}))
    with pytest.raises(ModelLoadError, match=r"image-to-video checkpoint in the layout.*diffusers layout"):
        WanPipeline(find_wan(other)).load()
