from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline

MakeJob = Callable[..., ImageJob]
LEVELS = 2


def made(tiny: Checkpoint, job: ImageJob, **chosen: object) -> GeneratedImages:
    return SDXLPipeline(tiny, options=SDXLOptions(**chosen)).generate(job, on_step=lambda *_: None)


def far(one: GeneratedImages, other: GeneratedImages) -> int:
    first, second = (np.asarray(each.images[0]).astype(int) for each in (one, other))
    return int(np.abs(first - second).max())


@pytest.mark.parametrize("scheduler", ["euler_a", "dpmpp_2m_sde_karras", "ddim", "unipc", "lcm"])
def test_a_chosen_scheduler_paints_and_keeps_seeds_in_batches(
    tiny: Checkpoint, image_job: MakeJob, scheduler: str
) -> None:
    """Those that draw noise between the steps draw it from each picture's own seed."""
    sdxl = SDXLPipeline(tiny, options=SDXLOptions(scheduler=scheduler))
    batch = sdxl.generate(image_job(num_images=3, steps=4), on_step=lambda *_: None)
    single = sdxl.generate(image_job(seed=9, steps=4), on_step=lambda *_: None)
    assert np.abs(np.asarray(batch.images[2]).astype(int) - np.asarray(single.images[0])).max() <= LEVELS
    assert np.asarray(single.images[0]).std() > 0


def test_a_few_step_checkpoint_runs_without_guidance(
    tiny: Checkpoint, sdxl: SDXLPipeline, image_job: MakeJob
) -> None:
    """Its guidance is built in; assets tell what was used, not what was asked for."""
    found = made(tiny, image_job(guidance_scale=6.0), few_steps="lightning")
    assert found.asset_metadata["guidance_scale"] == 0.0
    assert far(found, made(tiny, image_job(guidance_scale=1.0), few_steps="lightning")) <= LEVELS


@pytest.mark.parametrize("chosen", [{"attention": "math"}, {"channels_last": True}])
def test_what_only_makes_it_faster_changes_no_picture(
    tiny: Checkpoint, sdxl: SDXLPipeline, image_job: MakeJob, chosen: dict[str, object]
) -> None:
    """An operator may turn it on without asking anybody."""
    plain = sdxl.generate(image_job(), on_step=lambda *_: None)
    assert far(plain, made(tiny, image_job(), **chosen)) <= LEVELS


def test_the_chosen_attention_is_the_unet_s_alone(tiny: Checkpoint, image_job: MakeJob) -> None:
    """The fast kernels cannot do what the VAE and the text encoders need: every job would fail on a GPU."""
    sdxl = SDXLPipeline(tiny, options=SDXLOptions(attention="math"))
    sdxl.load()
    pipe = sdxl._pipe
    parts = {
        name: getattr(pipe, part).get_submodule(inner)
        for name, part, inner in (
            ("unet", "unet", ""),
            ("text_encoder", "text_encoder", ""),
            ("text_encoder_2", "text_encoder_2", ""),
            ("encoder", "vae", "encoder"),
            ("decoder", "vae", "decoder"),
        )
    }
    alone: dict[str, set[bool]] = {}

    def listen(name: str) -> Callable[..., None]:
        return lambda *_: alone.setdefault(name, set()).add(not torch.backends.cuda.flash_sdp_enabled())

    hooks = [module.register_forward_pre_hook(listen(name)) for name, module in parts.items()]
    try:
        job = image_job(reference="u/p.png", denoise_strength=0.5)
        sdxl.generate(job, reference=Image.new("RGB", (64, 64)), on_step=lambda *_: None)
    finally:
        for hook in hooks:
            hook.remove()
    assert alone == {name: {name == "unet"} for name in parts}
    assert torch.backends.cuda.flash_sdp_enabled()


def test_half_precision_paints_with_the_vae_in_single(
    tiny: Checkpoint, sdxl: SDXLPipeline, image_job: MakeJob
) -> None:
    """SDXL's VAE overflows in half precision: black pictures."""
    half = SDXLPipeline(tiny, options=SDXLOptions(dtype="float16"))
    found = half.generate(image_job(), on_step=lambda *_: None)
    assert half.info()["dtype"] == "float16"
    assert half._pipe.vae.dtype == torch.float32
    assert far(found, sdxl.generate(image_job(), on_step=lambda *_: None)) <= 16


def test_info_tells_what_was_chosen(tiny: Checkpoint) -> None:
    """An operator sees what is in force, not what the file of settings says."""
    sdxl = SDXLPipeline(tiny, options=SDXLOptions(scheduler="ddim", attention="math", channels_last=True))
    assert sdxl.info()["scheduler"] is None
    sdxl.load()
    told = {name: sdxl.info()[name] for name in ("scheduler", "attention", "channels_last", "compiled")}
    assert told == {
        "scheduler": "DDIMScheduler",
        "attention": "math",
        "channels_last": True,
        "compiled": False,
    }
