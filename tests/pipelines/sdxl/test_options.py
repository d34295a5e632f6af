"""The operator's options for SDXL."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from PIL import Image

from ourvidz.pipelines import compilation
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from tests.factories import image_job
from tests.pipelines.helpers import (
    MAX_DIFFERENCE,
    difference,
    image_levels,
    levels,
    longest_edges,
    no_progress,
)


def pipeline(checkpoint: Checkpoint, **options: object) -> SDXLPipeline:
    return SDXLPipeline(checkpoint, options=SDXLOptions(**options))


@pytest.mark.parametrize("scheduler", ["euler_a", "dpmpp_2m_sde_karras", "ddim", "unipc", "lcm"])
def test_a_selected_scheduler_keeps_seeds_in_batches(sdxl_checkpoint: Checkpoint, scheduler: str) -> None:
    """Those that draw noise between steps draw it from each image's own seed."""
    sdxl = pipeline(sdxl_checkpoint, scheduler=scheduler)
    batch = image_levels(sdxl, image_job(num_images=3, steps=4))
    [single] = image_levels(sdxl, image_job(seed=9, steps=4))
    assert difference(batch[2], single) <= MAX_DIFFERENCE
    assert single.std() > 0


def test_a_few_step_checkpoint_runs_without_guidance(sdxl_checkpoint: Checkpoint) -> None:
    """It is distilled with guidance; the metadata reports the scale in effect, not the requested one."""
    few_steps = pipeline(sdxl_checkpoint, few_steps="lightning")
    result = few_steps.generate(image_job(guidance_scale=6.0), on_step=no_progress)
    assert result.asset_metadata["guidance_scale"] == 0.0
    expected = image_levels(few_steps, image_job(guidance_scale=1.0))
    assert difference(levels(result.images), expected) <= MAX_DIFFERENCE


@pytest.mark.parametrize("options", [{"attention": "math"}, {"channels_last": True}])
def test_options_that_affect_speed_do_not_change_images(
    sdxl_checkpoint: Checkpoint, sdxl: SDXLPipeline, options: dict[str, object]
) -> None:
    """An operator can enable them without anybody noticing."""
    changed = image_levels(pipeline(sdxl_checkpoint, **options), image_job())
    assert difference(image_levels(sdxl, image_job()), changed) <= MAX_DIFFERENCE


def test_the_selected_attention_kernel_applies_to_the_unet_only(sdxl_checkpoint: Checkpoint) -> None:
    """The fast kernels do not support the VAE and the text encoders: every job would fail on a GPU."""
    sdxl = pipeline(sdxl_checkpoint, attention="math")
    sdxl.load()
    modules = {
        name: getattr(sdxl._pipe, component).get_submodule(inner)
        for name, component, inner in (
            ("unet", "unet", ""),
            ("text_encoder", "text_encoder", ""),
            ("text_encoder_2", "text_encoder_2", ""),
            ("encoder", "vae", "encoder"),
            ("decoder", "vae", "decoder"),
        )
    }
    restricted: dict[str, set[bool]] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda *_: restricted.setdefault(name, set()).add(not torch.backends.cuda.flash_sdp_enabled())

    for name, module in modules.items():
        module.register_forward_pre_hook(record(name))
    job = image_job(reference="u/p.png", denoise_strength=0.5)
    sdxl.generate(job, reference=Image.new("RGB", (64, 64)), on_step=no_progress)
    assert restricted == {name: {name == "unet"} for name in modules}
    assert torch.backends.cuda.flash_sdp_enabled()


def test_with_float16_the_vae_runs_in_float32(sdxl_checkpoint: Checkpoint, sdxl: SDXLPipeline) -> None:
    """SDXL's VAE overflows in half precision, which makes black images."""
    half = pipeline(sdxl_checkpoint, dtype="float16")
    images = image_levels(half, image_job())
    assert half.info()["dtype"] == "float16"
    assert half._pipe.vae.dtype == torch.float32
    assert difference(images, image_levels(sdxl, image_job())) <= 16


def test_info_shows_the_options(sdxl_checkpoint: Checkpoint) -> None:
    """An operator sees what is in effect, not what the settings file contains."""
    sdxl = pipeline(sdxl_checkpoint, scheduler="ddim", attention="math", channels_last=True)
    assert sdxl.info()["scheduler"] is None
    sdxl.load()
    expected = {
        "scheduler": "DDIMScheduler",
        "attention": "math",
        "channels_last": True,
        "compiled": False,
    }
    assert {name: sdxl.info()[name] for name in expected} == expected


def test_a_compiled_model_fails_no_job_when_it_has_too_many_graphs(
    sdxl_checkpoint: Checkpoint, sdxl: SDXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs of one day have more sizes than any limit: beyond it, blocks run without compiling."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compilation, "RECOMPILE_LIMIT", 1)
    compiled = pipeline(sdxl_checkpoint, compiled=True)
    for changes in ({}, {"num_images": 3}):
        job = image_job(steps=1, **changes)
        assert difference(image_levels(compiled, job), image_levels(sdxl, job)) <= MAX_DIFFERENCE
    torch._dynamo.reset()


def test_the_vae_always_works_in_tiles_if_selected(sdxl_checkpoint: Checkpoint) -> None:
    """For a GPU whose memory other workers need."""
    tiled = pipeline(sdxl_checkpoint, vae_tiled=True)
    tiled.load()
    with longest_edges(tiled._pipe.vae.decoder) as edges:
        result = tiled.generate(image_job(width=128, height=128), on_step=no_progress)
    assert max(edges) < 16
    assert (result.metadata["memory_rung"], tiled.info()["vae_tiling"]) == ("tiled", "always")
