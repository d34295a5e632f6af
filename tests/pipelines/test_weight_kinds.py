"""What a weight file is, from its header alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ourvidz.errors import ModelLoadError
from ourvidz.hub.weight_headers import read_header
from ourvidz.pipelines import weight_kinds
from ourvidz.pipelines.weight_kinds import KIND_NAMES, WeightKind, read_kind, require
from tests.pipelines.weight_files import FIRST, KOHYA, SDXL, SDXL_UNET, SECOND, UNET, VAE, write_sparse

SD1_UNET = {
    name: (320, 768) if "attn2" in name else shape for name, shape in SDXL_UNET.items() if "label" not in name
}
SD1_TEXT = {
    name.replace("conditioner.embedders.0", "cond_stage_model"): shape for name, shape in FIRST.items()
}
REFINER = {
    name.replace("embedders.1", "embedders.0"): (640, 1280) if "attn2" in name else shape
    for name, shape in (SDXL_UNET | SECOND).items()
}
KOHYA_LAYER = "lora_unet_input_blocks_4_1_proj_in"
WAN = {"head.modulation": (1, 2, 1536), "blocks.0.self_attn.q.weight": (1536, 1536)}

EXAMPLES: list[tuple[WeightKind, dict[str, tuple[int, ...]]]] = [
    ("sdxl", SDXL),
    ("sdxl", {name.removeprefix("model."): shape for name, shape in SDXL.items()}),
    ("sdxl unet", {name.removeprefix(UNET): shape for name, shape in SDXL_UNET.items()}),
    ("sdxl refiner", REFINER),
    ("sdxl inpainting", SDXL | {f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}),
    ("edm", SDXL | {"edm_mean": (1, 4, 1, 1)}),
    ("edm", SDXL | {"edm_vpred.sigma_max": ()}),
    ("sd1", SD1_UNET | SD1_TEXT),
    ("sd2", {name: (320, 1024) if "attn2" in name else shape for name, shape in SD1_UNET.items()}),
    ("sd3", {"model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight": (4608, 1536)}),
    ("flux", {"double_blocks.0.img_attn.qkv.weight": (1,), "single_blocks.0.linear1.weight": (1,)}),
    ("wan transformer", WAN),
    ("wan transformer", {f"model.diffusion_model.{name}": shape for name, shape in WAN.items()}),
    (
        "wan transformer",
        {"condition_embedder.text_embedder.linear_1.weight": (1,), "blocks.0.attn1.to_q.weight": (1,)},
    ),
    ("wan vace", WAN | {"vace_blocks.0.after_proj.bias": (1536,)}),
    ("wan vae", {"decoder.middle.0.residual.0.gamma": (384, 1, 1, 1), "conv1.weight": (1,)}),
    ("lora", KOHYA),
    ("lora", {"unet.down_blocks.1.attentions.0.proj_in.lora_A.weight": (4, 640)}),
    ("lora", {"diffusion_model.blocks.0.self_attn.q.lora_down.weight": (32, 1536)}),
    ("loha", {"lora_te1_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": (768, 8)}),
    ("lokr", {"lycoris_unet_down_blocks_1.lokr_w2": (4, 4), "lycoris_unet_down_blocks_1.alpha": ()}),
    ("glora", {f"{KOHYA_LAYER}.{name}.weight": (4, 640) for name in ("a1", "a2", "b1", "b2")}),
    ("ia3", {f"{KOHYA_LAYER}.weight": (1, 640), f"{KOHYA_LAYER}.on_input": ()}),
    ("ia3", {"base_model.model.down_blocks.1.attentions.0.to_k.ia3_l": (640, 1)}),
    ("oft", {f"{KOHYA_LAYER}.oft_blocks": (4, 160, 160)}),
    ("dora", KOHYA | {f"{KOHYA_LAYER}.dora_scale": (1, 640)}),
    ("differences", {f"{KOHYA_LAYER}.diff": (640, 640), f"{KOHYA_LAYER}.diff_b": (640,)}),
    ("lora", KOHYA | {"lora_unet_out_0.diff": (320,)}),
    ("lycoris", {f"{KOHYA_LAYER}.of_next_year": (640,)}),
    ("lora", {"unet.down_blocks.1.attentions.0.attn1.processor.to_q_lora.down.weight": (4, 640)}),
    ("ip-adapter", {"image_proj.norm.weight": (2048,), "ip_adapter.1.to_k_ip.weight": (640, 2048)}),
    ("controlnet", {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (1,)}),
    ("controlnet", SDXL_UNET | {"control_model.time_embed.0.weight": (1280, 320)}),
    ("embedding", {"clip_l": (2, 768), "clip_g": (2, 1280)}),
    ("vae", VAE),
    ("vae", {"decoder.up_blocks.0.resnets.0.norm1.weight": (512,), "decoder.conv_in.weight": (512, 4, 3, 3)}),
    (
        "clip text encoder",
        {name.removeprefix("conditioner.embedders.0.transformer."): (1,) for name in FIRST},
    ),
    ("clip image encoder", {"vision_model.encoder.layers.0.mlp.fc1.weight": (5120, 1280)}),
    ("t5 text encoder", {"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)}),
    ("t5 text encoder", {"token_embedding.weight": (256384, 4096), "blocks.0.attn.q.weight": (1,)}),
    ("language model", {"model.layers.0.self_attn.q_proj.weight": (3584, 3584)}),
    (
        "diffusers unet",
        {
            "down_blocks.0.resnets.0.conv1.weight": (1,),
            "conv_in.weight": (1,),
            "time_embedding.linear_1.bias": (1,),
            "add_embedding.linear_1.bias": (1,),
        },
    ),
    (
        "small diffusers unet",
        {
            f"{name}.weight": (1,)
            for name in ("down_blocks.0.resnets.0.conv1", "conv_in", "time_embedding.linear_1")
        },
    ),
    (
        "clip text encoder",
        {"embeddings.token_embedding.weight": (1,), "encoder.layers.0.mlp.fc1.weight": (1,)},
    ),
    (
        "clip image encoder",
        {"embeddings.patch_embedding.weight": (1,), "encoder.layers.0.mlp.fc1.weight": (1,)},
    ),
    ("unknown", {"layer.weight": (4,)}),
    ("unknown", {}),
]


@pytest.mark.parametrize(("kind", "tensors"), EXAMPLES, ids=[kind for kind, _ in EXAMPLES])
def test_a_file_is_named_by_its_header(
    tmp_path: Path, kind: WeightKind, tensors: dict[str, tuple[int, ...]]
) -> None:
    """An operator who set the wrong file sees at once which one it is."""
    path = write_sparse(tmp_path / "model.safetensors", tensors)
    assert read_kind(path) == kind
    if kind != "sdxl":
        with pytest.raises(ModelLoadError) as refused:
            require(path, "sdxl", wanted="an SDXL checkpoint")
        assert str(refused.value).startswith(f"{path} is {KIND_NAMES[kind]}")
        assert str(refused.value).endswith(", not an SDXL checkpoint.")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + b"\0" * 60, "is a pickle: refused"),
        (b"\x80\x02}q\x00X\x01\x00\x00", "is a pickle: refused"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        (b"<!doctype html><title>Not found</title>", "is a web page"),
        (b"\n\n  <!DOCTYPE html>\n<html>", "is a web page"),
        (b"\xef\xbb\xbf\r\n<html></html>", "is a web page"),
        (b"<script>{}</script><h1>Not found</h1>", "is a web page"),
        (b'{"error": "Invalid username or password."}', "is a JSON document"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "is a GGUF file"),
        (b"half a download", "is not a safetensors file"),
        (b"\x10\0\0\0\0\0\0\0{", "is truncated: it ends within its header"),
        (b"\x02\0\0\0\0\0\0\0[]", "is not a safetensors file"),
        (b'\x0a\0\0\0\0\0\0\0{"a": [1]}', "is not a safetensors file"),
        ((10**5).to_bytes(8, "little") + b'{"a":' * 20_000, "is not a safetensors file"),
    ],
)
def test_a_file_of_another_format_says_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    """One line at the start of the worker, not an exception of a library."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError) as refused:
        read_header(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pth"])
def test_a_pickle_is_refused_by_its_name_too(tmp_path: Path, name: str) -> None:
    """Old ones begin with no magic number."""
    (tmp_path / name).write_bytes(b"(dp0\nS'state_dict'\n" + b"." * 80)
    with pytest.raises(ModelLoadError, match="is a pickle: refused"):
        read_header(tmp_path / name)


def test_a_truncated_or_extended_file_names_both_sizes(tmp_path: Path) -> None:
    """A download that broke off is the most common damage."""
    path = write_sparse(tmp_path / "model.safetensors", SDXL)
    size = path.stat().st_size
    for change, message in ((-1, "is truncated: it has"), (1, "it is damaged")):
        with path.open("r+b") as file:
            file.truncate(size + change)
        with pytest.raises(ModelLoadError, match=message) as refused:
            read_header(path)
        assert f"{size + change} bytes instead of {size}" in str(refused.value)


def test_a_file_of_sdxls_size_is_named_within_50_ms(tmp_path: Path) -> None:
    """7 GB with 2,500 weights and as many averages: nothing but the header is read."""
    weights = {f"{UNET}output_blocks.{index}.weight": (1280, 2048) for index in range(1_800)}
    averages = {
        f"model_ema.diffusion_modeloutput_blocks{index}weight": (1280, 2048) for index in range(1_800)
    }
    texts = {
        f"conditioner.embedders.1.model.transformer.resblocks.{index}.w": (1280,) for index in range(700)
    }
    path = write_sparse(tmp_path / "model.safetensors", averages | texts | weights | SDXL)
    assert path.stat().st_size > 7 << 30
    fastest = min(_seconds(path) for _ in range(5))
    assert fastest < 0.05


def _seconds(path: Path) -> float:
    """Processor seconds."""
    started = time.process_time()
    assert weight_kinds.read_kind(path) == "sdxl"
    return time.process_time() - started


def test_the_metadata_of_a_header_is_text(tmp_path: Path) -> None:
    """Programs write numbers and null there too."""
    path = write_sparse(tmp_path / "model.safetensors", {}, metadata={"steps": 5, "author": None})
    assert dict(read_header(path).metadata) == {"steps": "5", "author": "None"}
    assert json.loads(path.read_bytes()[8:])["__metadata__"]["steps"] == 5
