"""IP-Adapter: references that condition style, composition or character."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from ourvidz.errors import I2IPipelineError, ModelLoadError
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.ip_adapter import AdapterFiles, attention_block_prefixes
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.tensor_cache import TensorCache
from tests.factories import image_job
from tests.pipelines.helpers import MAX_DIFFERENCE, difference, image_levels, no_progress, raising

SIDE_PX = 16
WIDTH = 12
TOKENS = 4
BLOCKS = {
    "style": ("up_blocks.0.attentions.1.",),
    "composition": ("down_blocks.1.attentions.0.",),
    "character": ("down_blocks.1.", "mid_block.", "up_blocks.0."),
}
"""The attention blocks by reference type, in the tiny UNet, whose only attention is at its second level."""


@pytest.fixture(scope="module")
def files(sdxl_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> AdapterFiles:
    """A small adapter with random weights for the tiny checkpoint, and its image encoder."""
    folder = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        vision = transformers.CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE_PX,
            patch_size=8,
            projection_dim=WIDTH,
        )
        transformers.CLIPVisionModelWithProjection(vision).save_pretrained(folder / "encoder")
        sdxl = SDXLPipeline(sdxl_checkpoint)
        sdxl.load()
        save_file(_adapter_weights(sdxl), folder / "adapter.safetensors")
    return AdapterFiles(folder / "adapter.safetensors", folder / "encoder")


def _adapter_weights(sdxl: SDXLPipeline) -> dict[str, torch.Tensor]:
    """Random weights in the published format: keys and values of every cross-attention, numbered in the
    UNet's order."""
    unet = sdxl._pipe.unet
    text_width = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(TOKENS * text_width, WIDTH),
        "image_proj.proj.bias": torch.zeros(TOKENS * text_width),
        "image_proj.norm.weight": torch.ones(text_width),
        "image_proj.norm.bias": torch.zeros(text_width),
    }
    for number, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            out = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            tensors[f"ip_adapter.{number}.to_k_ip.weight"] = torch.randn(out, text_width)
            tensors[f"ip_adapter.{number}.to_v_ip.weight"] = torch.randn(out, text_width)
    return tensors


@pytest.fixture(scope="module")
def adapted(sdxl_checkpoint: Checkpoint, files: AdapterFiles) -> SDXLPipeline:
    """The tiny pipeline with the adapter loaded."""
    sdxl = SDXLPipeline(sdxl_checkpoint, options=SDXLOptions(ip_adapter=files))
    sdxl.load()
    return sdxl


def gradient(quarter_turns: int) -> Image.Image:
    """A linear gradient, rotated."""
    return Image.linear_gradient("L").rotate(90 * quarter_turns).convert("RGB")


def generate(
    sdxl: SDXLPipeline, reference_type: str | None, quarter_turns: int = 0, **changes: object
) -> GeneratedImages:
    job = image_job(reference="u/p.png", reference_type=reference_type, **changes)
    return sdxl.generate(job, reference=gradient(quarter_turns), on_step=no_progress)


def image_difference(one: GeneratedImages, other: GeneratedImages) -> int:
    return difference(one.images[0], other.images[0])


def test_attention_blocks_of_the_full_size_unet() -> None:
    """On a UNet with the blocks of the real one, only narrower."""
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


@pytest.mark.parametrize("reference_type", BLOCKS)
def test_only_the_blocks_of_the_reference_type_have_a_scale(
    adapted: SDXLPipeline, reference_type: str
) -> None:
    """Style on the way up, composition on the way down, a character everywhere."""
    generate(adapted, reference_type)
    scales = {
        name: processor.scale[0]
        for name, processor in adapted._pipe.unet.attn_processors.items()
        if hasattr(processor, "scale")
    }
    assert len(scales) == 4
    active = {name for name, scale in scales.items() if scale}
    assert active == {name for name in scales if name.startswith(BLOCKS[reference_type])}
    assert {scales[name] for name in active} == {0.85}


def test_reference_type_and_reference_change_the_image(adapted: SDXLPipeline) -> None:
    """A type without an effect would be useless."""
    results = {reference_type: generate(adapted, reference_type) for reference_type in BLOCKS}
    for one, other in combinations(results.values(), 2):
        assert image_difference(one, other) > MAX_DIFFERENCE
    for reference_type, result in results.items():
        other_reference = generate(adapted, reference_type, quarter_turns=1)
        assert image_difference(result, other_reference) > MAX_DIFFERENCE


def test_the_reference_has_no_effect_at_full_strength(adapted: SDXLPipeline) -> None:
    """More strength means less of the reference."""
    plain = adapted.generate(image_job(), on_step=no_progress)
    assert image_difference(plain, generate(adapted, "character", denoise_strength=1.0)) <= MAX_DIFFERENCE
    assert image_difference(plain, generate(adapted, "character", denoise_strength=0.5)) > MAX_DIFFERENCE


def test_a_reference_is_encoded_once(sdxl_checkpoint: Checkpoint, files: AdapterFiles) -> None:
    """Equal references give equal images without the encoder, also in several batches; another adapter, or
    another image, is encoded."""
    cache = TensorCache(8)
    cached, plain = (
        SDXLPipeline(sdxl_checkpoint, options=SDXLOptions(ip_adapter=files), cache=one)
        for one in (cache, None)
    )
    expected = generate(plain, "style").images[0].tobytes()
    first = generate(cached, "style")
    encoder = cached._model.adapter.encoder if cached._model.adapter else None
    assert encoder is not None
    with raising(encoder, AssertionError("the encoder ran")):
        again = generate(cached, "style")
        with pytest.raises(I2IPipelineError):
            generate(cached, "style", quarter_turns=1)
    assert [result.images[0].tobytes() for result in (first, again)] == [expected, expected]
    assert again.metadata["embedding_cache"] == {"hits": 2, "misses": 0}
    cached.unload()
    weights = load_file(files.weights)
    weights["image_proj.proj.weight"] += 1.0
    other = AdapterFiles(files.weights.with_name("other.safetensors"), files.encoder)
    save_file(weights, other.weights)
    replaced = SDXLPipeline(sdxl_checkpoint, options=SDXLOptions(ip_adapter=other), cache=cache)
    assert generate(replaced, "style").images[0].tobytes() != expected


def test_the_metadata_names_the_adapter(adapted: SDXLPipeline) -> None:
    """All steps run, because denoising starts from pure noise."""
    result = generate(adapted, "style")
    assert result.metadata["reference_backend"] == "ip_adapter"
    assert result.asset_metadata["pipeline"] == "ip_adapter"
    assert result.asset_metadata["effective_steps"] == 2
    assert adapted.info()["ip_adapter"] == "adapter"


def test_without_a_reference_type_image_to_image_is_used(adapted: SDXLPipeline) -> None:
    """For exact copies too, whatever their type."""
    assert generate(adapted, None).metadata["reference_backend"] == "img2img"
    copy = {"prompt": "", "exact_copy_mode": True, "denoise_strength": 0.05, "steps": 2}
    assert generate(adapted, "style", **copy).metadata["reference_backend"] == "img2img"


def test_a_loaded_adapter_does_not_change_jobs_without_a_reference(
    adapted: SDXLPipeline, sdxl: SDXLPipeline
) -> None:
    """Also after a job that used it."""
    generate(adapted, "character")
    for job in (image_job(), image_job(guidance_scale=1.0), image_job(num_images=3)):
        one, other = (image_levels(pipeline, job) for pipeline in (adapted, sdxl))
        assert difference(one, other) <= MAX_DIFFERENCE


def test_each_image_of_a_batch_equals_the_single_image_of_its_seed(adapted: SDXLPipeline) -> None:
    """Callers pick one image of a batch and request it again by its seed."""
    batch = generate(adapted, "style", num_images=3)
    single = generate(adapted, "style", seed=9)
    assert difference(batch.images[2], single.images[0]) <= MAX_DIFFERENCE


@pytest.mark.parametrize(("weights", "encoder"), [("gone.safetensors", None), (None, "gone")])
def test_missing_files_are_a_load_error(
    sdxl_checkpoint: Checkpoint, files: AdapterFiles, tmp_path: Path, weights: str | None, encoder: str | None
) -> None:
    """Reported at start."""
    missing = AdapterFiles(
        tmp_path / weights if weights else files.weights, tmp_path / encoder if encoder else files.encoder
    )
    with pytest.raises(ModelLoadError, match="gone"):
        SDXLPipeline(sdxl_checkpoint, options=SDXLOptions(ip_adapter=missing)).load()


def test_a_file_that_is_no_adapter_is_a_load_error(
    sdxl_checkpoint: Checkpoint, files: AdapterFiles, tmp_path: Path
) -> None:
    """For example a LoRA."""
    save_file({"unet.to_q.lora_A.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    no_adapter = AdapterFiles(tmp_path / "lora.safetensors", files.encoder)
    with pytest.raises(ModelLoadError, match="is a LoRA, not an IP-Adapter"):
        SDXLPipeline(sdxl_checkpoint, options=SDXLOptions(ip_adapter=no_adapter)).load()


def test_an_adapter_for_another_encoder_is_a_load_error(
    sdxl_checkpoint: Checkpoint, files: AdapterFiles, tmp_path: Path
) -> None:
    """The projection runs for every job, so that plain jobs would fail too, one after the other."""
    weights = load_file(files.weights)
    weights["image_proj.proj.weight"] = torch.randn(len(weights["image_proj.proj.bias"]), WIDTH + 4)
    save_file(weights, tmp_path / "wide.safetensors")
    mismatched = AdapterFiles(tmp_path / "wide.safetensors", files.encoder)
    with pytest.raises(
        ModelLoadError, match=r"wide\.safetensors does not fit the image encoder in .*encoder"
    ):
        SDXLPipeline(sdxl_checkpoint, options=SDXLOptions(ip_adapter=mismatched)).load()


def test_compiled_blocks_are_not_recompiled_for_each_strength(
    sdxl_checkpoint: Checkpoint, files: AdapterFiles, adapted: SDXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the scale were a constant of the graph, the ninth job would exceed torch's recompilation limit. The
    eager backend only traces."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled = SDXLPipeline(sdxl_checkpoint, options=SDXLOptions(ip_adapter=files, compiled=True))
    compiled.load()
    for tenth in range(10):
        changes = {"denoise_strength": tenth / 10, "steps": 1}
        one, other = (generate(pipeline, "character", **changes) for pipeline in (compiled, adapted))
        assert image_difference(one, other) <= MAX_DIFFERENCE
    torch._dynamo.reset()
