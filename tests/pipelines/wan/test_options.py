"""The operator's options for Wan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from PIL import Image

from ourvidz.errors import ModelLoadError
from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import video_job
from tests.pipelines.helpers import MAX_DIFFERENCE, clip_levels, difference, no_progress

CPU = torch.device("cpu")


def pipeline(checkpoint: Checkpoint, **options: object) -> WanPipeline:
    return WanPipeline(checkpoint, cap=64, options=WanOptions(**{"previews": False} | options))


def test_the_selected_attention_kernel_applies_to_the_transformer_only(
    wan: WanPipeline, wan_checkpoint: Checkpoint
) -> None:
    """The fast kernels do not support the VAE and the text encoder: jobs would fail on a GPU."""
    selected = pipeline(wan_checkpoint, attention="math")
    selected.load()
    restricted: dict[str, set[bool]] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda *_: restricted.setdefault(name, set()).add(not torch.backends.cuda.flash_sdp_enabled())

    pipe = selected.components.pipe
    modules = {
        "transformer": pipe.transformer,
        "text_encoder": pipe.text_encoder,
        "encoder": pipe.vae.encoder,
        "decoder": pipe.vae.decoder,
    }
    for name, module in modules.items():
        module.register_forward_pre_hook(record(name))
    references = ReferenceImages(start=Image.new("RGB", (32, 32)))
    selected.generate(video_job(reference_mode="start"), references=references, on_step=no_progress)
    assert restricted == {name: {name == "transformer"} for name in modules}
    assert torch.backends.cuda.flash_sdp_enabled()
    one, other = (clip_levels(each, video_job()) for each in (selected, wan))
    assert difference(one, other) <= MAX_DIFFERENCE


@pytest.mark.parametrize("cache", [None, "first_block", "taylorseer"])
def test_blocks_are_compiled_once_for_all_jobs(
    wan: WanPipeline, wan_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, cache: str | None
) -> None:
    """Compiling takes a minute on a GPU. A step cache, which is installed for every job, must not cause it
    again. The back end here counts graphs and does not compile them."""
    graphs: list[int] = []

    def count_graphs(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(1)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count_graphs))
    compiled = pipeline(wan_checkpoint, compiled=True, cache=cache)
    job = video_job(steps=6)
    expected = clip_levels(wan if cache is None else pipeline(wan_checkpoint, cache=cache), job)
    assert difference(clip_levels(compiled, job), expected) <= MAX_DIFFERENCE
    after_one_job = len(graphs)
    assert 0 < after_one_job <= len(compiled.components.pipe.transformer.blocks)
    assert difference(clip_levels(compiled, job), expected) <= MAX_DIFFERENCE
    assert len(graphs) == after_one_job


def test_a_few_step_checkpoint_runs_without_guidance(wan: WanPipeline, wan_checkpoint: Checkpoint) -> None:
    """It is distilled with guidance; the metadata reports the scale in effect, not the requested one."""
    few_steps = pipeline(wan_checkpoint, few_steps=True)
    job = video_job(guidance_scale=6.5, negative_prompt="fog")
    result = few_steps.generate(job, on_step=no_progress)
    assert result.asset_metadata["guidance_scale"] == 1.0
    assert result.negative_prompt_used is False
    expected = clip_levels(wan, video_job(guidance_scale=1.0))
    assert difference(clip_levels(few_steps, video_job()), expected) <= MAX_DIFFERENCE


def test_dtype_applies_to_everything_but_the_vae(wan_checkpoint: Checkpoint) -> None:
    """On every device."""
    half = pipeline(wan_checkpoint, dtype="bfloat16")
    clip_levels(half, video_job(steps=1))
    assert half.info()["dtype"] == "bfloat16"
    assert half.components.pipe.transformer.proj_out.weight.dtype == torch.bfloat16
    assert half.components.pipe.vae.dtype == torch.float32


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_the_default_dtype_depends_on_the_device(device: str, dtype: torch.dtype) -> None:
    """Half precision is slow on a CPU, and Wan's text encoder overflows in float16."""
    assert WanOptions().dtype_on(torch.device(device)) == dtype


def test_group_offloading_without_a_gpu_is_refused(wan_checkpoint: Checkpoint) -> None:
    """Before any file is read."""
    wan = WanPipeline(wan_checkpoint, device=CPU, options=WanOptions(grouped=True))
    with pytest.raises(ModelLoadError, match="OURVIDZ_WAN_GROUP_OFFLOAD needs a GPU"):
        wan.load()
    assert wan.info()["loaded"] is False


def test_group_offloading_does_not_change_the_clip(
    wan: WanPipeline, wan_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and with a step cache. Here weights are moved from the CPU to the CPU, by the real hooks."""
    monkeypatch.setattr(WanOptions, "check", lambda *_: None)
    grouped = WanPipeline(wan_checkpoint, device=CPU, cap=64, options=WanOptions(grouped=True))
    expected = clip_levels(wan, video_job())
    assert difference(clip_levels(grouped, video_job()), expected) <= MAX_DIFFERENCE
    pipe = grouped.components.pipe
    assert any(hasattr(block, "_diffusers_hook") for block in pipe.transformer.blocks)
    assert any(hasattr(module, "_diffusers_hook") for module in pipe.text_encoder.modules())
    assert not any(hasattr(module, "_diffusers_hook") for module in pipe.vae.modules())
    job = video_job(steps=6)
    options = WanOptions(grouped=True, cache="first_block", threshold=0.5, previews=False)
    grouped_and_cached = WanPipeline(wan_checkpoint, device=CPU, cap=64, options=options)
    cached = pipeline(wan_checkpoint, cache="first_block", threshold=0.5)
    for _ in range(2):
        one, other = (clip_levels(each, job) for each in (grouped_and_cached, cached))
        assert difference(one, other) <= MAX_DIFFERENCE


def test_info_shows_the_options(wan_checkpoint: Checkpoint) -> None:
    """An operator sees what is in effect, not what the settings file contains."""
    options = WanOptions(attention="math", cache="mag", threshold=0.1, tiled=True)
    info = WanPipeline(wan_checkpoint, options=options).info()
    expected = {
        "attention": "math",
        "cache": "mag",
        "cache_threshold": 0.1,
        "vae_tiling": "always",
        "compiled": False,
        "few_steps": False,
        "group_offload": False,
    }
    assert {name: info[name] for name in expected} == expected
