from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.ip_adapter import AdapterFiles, attention_block_prefixes
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline

MakeJob = Callable[..., ImageJob]

SIDE = 16
WIDTH = 12
TOKENS = 4
LEVELS = 2
"""How far the 8-bit levels of two equal pictures may lie apart."""
HEARING = {
    "style": ("up_blocks.0.attentions.1.",),
    "composition": ("down_blocks.1.attentions.0.",),
    "character": ("down_blocks.1.", "mid_block.", "up_blocks.0."),
}
"""Where the tiny UNet, whose only attention is at its second level, is to hear a reference."""


@pytest.fixture(scope="module")
def files(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> AdapterFiles:
    """A small adapter with random weights for the tiny checkpoint, and its image encoder."""
    folder = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        vision = transformers.CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=8,
            projection_dim=WIDTH,
        )
        transformers.CLIPVisionModelWithProjection(vision).save_pretrained(folder / "encoder")
        plain = SDXLPipeline(tiny)
        plain.load()
        save_file(_adapter_weights(plain), folder / "adapter.safetensors")
    return AdapterFiles(folder / "adapter.safetensors", folder / "encoder")


def _adapter_weights(sdxl: SDXLPipeline) -> dict[str, torch.Tensor]:
    """As adapters are published: keys and values of every cross-attention, numbered in the UNet's order."""
    unet = sdxl._pipe.unet
    words = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(TOKENS * words, WIDTH),
        "image_proj.proj.bias": torch.zeros(TOKENS * words),
        "image_proj.norm.weight": torch.ones(words),
        "image_proj.norm.bias": torch.zeros(words),
    }
    for number, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            out = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            tensors[f"ip_adapter.{number}.to_k_ip.weight"] = torch.randn(out, words)
            tensors[f"ip_adapter.{number}.to_v_ip.weight"] = torch.randn(out, words)
    return tensors


@pytest.fixture(scope="module")
def adapted(tiny: Checkpoint, files: AdapterFiles) -> SDXLPipeline:
    """The tiny pipeline with the adapter in it."""
    sdxl = SDXLPipeline(tiny, options=SDXLOptions(ip_adapter=files))
    sdxl.load()
    return sdxl


def hills(levels: int) -> Image.Image:
    """A gradient in one of its many directions."""
    return Image.linear_gradient("L").rotate(90 * levels).convert("RGB")


def follow(
    sdxl: SDXLPipeline, image_job: MakeJob, kind: str | None, levels: int = 0, **changed: object
) -> GeneratedImages:
    job = image_job(reference="u/p.png", reference_type=kind, **changed)
    return sdxl.generate(job, reference=hills(levels), on_step=lambda *_: None)


def far(one: GeneratedImages, other: GeneratedImages) -> int:
    first, second = (np.asarray(each.images[0]).astype(int) for each in (one, other))
    return int(np.abs(first - second).max())


def test_the_real_sdxl_hears_where_it_was_found_to() -> None:
    """A UNet with the blocks of the real one, only narrower."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=4,
        norm_num_groups=4,
        cross_attention_dim=8,
    )
    assert attention_block_prefixes(unet) == {
        "style": ("up_blocks.0.attentions.1.",),
        "composition": ("down_blocks.2.attentions.1.",),
        "character": ("",),
    }


@pytest.mark.parametrize("kind", HEARING)
def test_each_type_of_reference_is_heard_in_its_blocks_alone(
    adapted: SDXLPipeline, image_job: MakeJob, kind: str
) -> None:
    """Style is painted on the way up, composition laid out on the way down, a character is everywhere."""
    follow(adapted, image_job, kind)
    scales = {
        name: processor.scale[0]
        for name, processor in adapted._pipe.unet.attn_processors.items()
        if hasattr(processor, "scale")
    }
    assert len(scales) == 4
    heard = {name for name, scale in scales.items() if scale}
    assert heard == {name for name in scales if name.startswith(HEARING[kind])}
    assert {scales[name] for name in heard} == {0.85}


def test_each_type_of_reference_makes_another_picture(adapted: SDXLPipeline, image_job: MakeJob) -> None:
    """A type that changes nothing would be a promise not kept."""
    kinds = list(HEARING)
    found = {kind: follow(adapted, image_job, kind) for kind in kinds}
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert far(found[kinds[one]], found[kinds[other]]) > LEVELS
    for kind in kinds:
        assert far(found[kind], follow(adapted, image_job, kind, levels=1)) > LEVELS, "not the reference"


def test_more_strength_follows_less(adapted: SDXLPipeline, image_job: MakeJob) -> None:
    """At full strength only the prompt is left."""
    plain = adapted.generate(image_job(), on_step=lambda *_: None)
    assert far(plain, follow(adapted, image_job, "character", denoise_strength=1.0)) <= LEVELS
    assert far(plain, follow(adapted, image_job, "character", denoise_strength=0.5)) > LEVELS


def test_what_followed_the_reference_is_told(adapted: SDXLPipeline, image_job: MakeJob) -> None:
    """All steps run: the picture begins in noise."""
    found = follow(adapted, image_job, "style")
    assert found.metadata["reference_backend"] == "ip_adapter"
    assert found.asset_metadata["pipeline"] == "ip_adapter"
    assert found.asset_metadata["effective_steps"] == 2
    assert adapted.info()["ip_adapter"] == "adapter"


def test_a_reference_without_a_type_is_changed_as_a_picture(
    adapted: SDXLPipeline, image_job: MakeJob
) -> None:
    """So is an exact copy; the adapter stays silent."""
    found = follow(adapted, image_job, None)
    assert found.metadata["reference_backend"] == "img2img"
    copied = {"prompt": "", "exact_copy_mode": True, "denoise_strength": 0.05, "steps": 2}
    assert follow(adapted, image_job, "style", **copied).metadata["reference_backend"] == "img2img"


def test_a_silent_adapter_changes_nothing(
    adapted: SDXLPipeline, sdxl: SDXLPipeline, image_job: MakeJob
) -> None:
    """Jobs without a reference get the pictures they got before it was configured."""
    follow(adapted, image_job, "character")
    for job in (image_job(), image_job(guidance_scale=1.0), image_job(num_images=3)):
        one, other = (each.generate(job, on_step=lambda *_: None) for each in (adapted, sdxl))
        assert far(one, other) <= LEVELS


def test_a_batch_is_its_single_pictures(adapted: SDXLPipeline, image_job: MakeJob) -> None:
    """Callers pick one picture of a batch and ask for it again by its seed."""
    batch = follow(adapted, image_job, "style", num_images=3)
    single = follow(adapted, image_job, "style", seed=9)
    assert np.abs(np.asarray(batch.images[2]).astype(int) - np.asarray(single.images[0])).max() <= LEVELS


@pytest.mark.parametrize(("weights", "encoder"), [("gone.safetensors", None), (None, "gone")])
def test_missing_files_are_a_load_error(
    tiny: Checkpoint, files: AdapterFiles, tmp_path: Path, weights: str | None, encoder: str | None
) -> None:
    """An operator learns it at start."""
    wrong = AdapterFiles(
        tmp_path / weights if weights else files.weights, tmp_path / encoder if encoder else files.encoder
    )
    with pytest.raises(ModelLoadError, match="gone"):
        SDXLPipeline(tiny, options=SDXLOptions(ip_adapter=wrong)).load()


def test_a_file_that_is_no_adapter_is_a_load_error(
    tiny: Checkpoint, files: AdapterFiles, tmp_path: Path
) -> None:
    """A LoRA in its place, for instance."""
    save_file({"unet.to_q.lora_A.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    wrong = AdapterFiles(tmp_path / "lora.safetensors", files.encoder)
    with pytest.raises(ModelLoadError, match="no IP-Adapter"):
        SDXLPipeline(tiny, options=SDXLOptions(ip_adapter=wrong)).load()


def test_compiled_blocks_take_any_strength(
    tiny: Checkpoint,
    files: AdapterFiles,
    adapted: SDXLPipeline,
    image_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A caller's strength is no constant of the program: compiled anew for each, the ninth job would fail.
    Here only the tracing is done."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = SDXLPipeline(tiny, options=SDXLOptions(ip_adapter=files, compiled=True))
    compiled.load()
    for number in range(10):
        asked = {"denoise_strength": number / 10, "steps": 1}
        found = follow(compiled, image_job, "character", **asked)
        assert far(found, follow(adapted, image_job, "character", **asked)) <= LEVELS
    torch._dynamo.reset()
