"""What the weight files of checkpoint folders hold, from their headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.pipelines.folder_weights import require_weights
from ourvidz.pipelines.sdxl.checkpoint import find_sdxl
from ourvidz.pipelines.texts.checkpoint import find_qwen
from ourvidz.pipelines.wan.checkpoint import find_wan
from tests.pipelines.weight_files import KOHYA, SDXL, VAE, write_sparse

SD1_UNET = {
    f"{name}.weight": (320,)
    for name in ("conv_in", "time_embedding.linear_1", "down_blocks.0.resnets.0.conv1")
}
QWEN = {"model.embed_tokens.weight": (8, 8), "model.layers.0.self_attn.q_proj.weight": (8, 8)}

Find = Callable[[Path], object]


def links(checkpoint: Path, into: Path) -> Path:
    """A copy of a checkpoint folder whose files are links."""
    return copytree(checkpoint, into, copy_function=lambda source, target: Path(target).symlink_to(source))


def replace(file: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Write a sparse file in place of a link."""
    file.unlink()
    write_sparse(file, tensors)


@pytest.mark.parametrize(
    ("packaged", "find", "file", "tensors", "message"),
    [
        (
            "tiny-sdxl",
            find_sdxl,
            "unet/diffusion_pytorch_model",
            SD1_UNET,
            "the UNet of an SD 1.5 .*, not the UNet",
        ),
        ("tiny-sdxl", find_sdxl, "unet/diffusion_pytorch_model", KOHYA, "a LoRA, not the UNet of SDXL"),
        (
            "tiny-sdxl",
            find_sdxl,
            "unet/diffusion_pytorch_model",
            SDXL,
            "an SDXL checkpoint, not the UNet of SDXL",
        ),
        ("tiny-sdxl", find_sdxl, "vae/diffusion_pytorch_model", QWEN, "a language model, not a VAE"),
        ("tiny-sdxl", find_sdxl, "text_encoder_2/model", VAE, "a VAE, not a CLIP text encoder"),
        (
            "tiny-wan",
            find_wan,
            "transformer/diffusion_pytorch_model",
            SD1_UNET,
            "the UNet .*, not a Wan transformer",
        ),
        ("tiny-wan", find_wan, "vae/diffusion_pytorch_model", VAE, "a VAE, not a Wan VAE"),
        ("tiny-wan", find_wan, "text_encoder/model", QWEN, "a language model, not a T5 text encoder"),
        (
            "tiny-qwen",
            lambda path: find_qwen(path, "base"),
            "base/model",
            KOHYA,
            "a LoRA, not a language model",
        ),
    ],
)
def test_a_file_of_the_wrong_kind_in_a_folder_is_named(
    tmp_path: Path, packaged: str, find: Find, file: str, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    """A library would leave the weights out that it does not know, and take random ones for the others."""
    folder = links(PACKAGED / packaged, tmp_path / "mine")
    find(folder)
    path = folder / f"{file}.safetensors"
    replace(path, tensors)
    with pytest.raises(ModelLoadError, match=f"{path} is {message}"):
        find(folder)


def test_a_folder_without_weights_names_what_is_missing_and_pickles(tmp_path: Path) -> None:
    """Before the library does, minutes later; older downloads have `.bin` files, which are not loaded."""
    folder = links(PACKAGED / "tiny-sdxl", tmp_path / "mine")
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"mine/vae lacks diffusion_pytorch_model\.safetensors, a VAE"):
        find_sdxl(folder)
    find_sdxl(folder, vae=PACKAGED / "tiny-sdxl/vae")
    (folder / "vae/diffusion_pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(80))
    with pytest.raises(ModelLoadError, match=r"diffusion_pytorch_model\.bin is a pickle: refused"):
        find_sdxl(folder)


def test_shards_are_one_set_of_weights(tmp_path: Path) -> None:
    """The second one alone is of unknown kind; one that is missing, cut or another file is named."""
    first, second = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

    def check() -> None:
        require_weights(tmp_path, "model", "language model", wanted="a language model")

    write_sparse(tmp_path / first, {"model.norm.weight": (8,)})
    write_sparse(tmp_path / second, QWEN)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": first, **dict.fromkeys(QWEN, second)}}))
    check()
    write_sparse(tmp_path / "model.fp16.safetensors", VAE)
    with pytest.raises(ModelLoadError, match=r"model\.fp16\.safetensors is a VAE, not a language model"):
        check()
    (tmp_path / "model.fp16.safetensors").unlink()
    write_sparse(tmp_path / first, KOHYA)
    with pytest.raises(ModelLoadError, match=f"{first} is a LoRA, not a language model"):
        check()
    (tmp_path / first).write_bytes(b"<html>")
    with pytest.raises(ModelLoadError, match=f"{first} is a web page"):
        check()
    (tmp_path / first).unlink()
    with pytest.raises(ModelLoadError, match=f"{first} cannot be read"):
        check()
    for text in ("[]", '{"weight_map": {}}', "not JSON", '{"weight_map": {"a": 5}}'):
        index.write_text(text)
        with pytest.raises(ModelLoadError, match=r"model\.safetensors\.index\.json"):
            check()


def test_a_stray_file_beside_the_weights_is_not_judged(tmp_path: Path) -> None:
    """It is not loaded."""
    folder = links(PACKAGED / "tiny-sdxl", tmp_path / "mine")
    write_sparse(folder / "unet/my-lora.safetensors", KOHYA)
    find_sdxl(folder)
