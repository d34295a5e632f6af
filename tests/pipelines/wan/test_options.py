from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import video_job

MakeJob = Callable[..., VideoJob]
LEVELS = 2
CPU = torch.device("cpu")


def pipeline(checkpoint: Checkpoint, **chosen: object) -> WanPipeline:
    return WanPipeline(checkpoint, cap=64, options=WanOptions(**{"previews": False} | chosen))


def clip(wan: WanPipeline, job: VideoJob) -> np.ndarray:
    made = wan.generate(job, on_step=lambda *_: None)
    return np.stack([np.asarray(frame) for frame in made.frames]).astype(int)


def far(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def test_the_chosen_attention_is_the_transformer_s_alone(
    wan: WanPipeline, wan_checkpoint: Checkpoint
) -> None:
    """The fast kernels know neither the VAE's shapes nor the text encoder's: jobs would fail on a GPU."""
    chosen = pipeline(wan_checkpoint, attention="math")
    chosen.load()
    alone: dict[str, set[bool]] = {}

    def listen(name: str) -> Callable[..., None]:
        return lambda *_: alone.setdefault(name, set()).add(not torch.backends.cuda.flash_sdp_enabled())

    parts = {
        "transformer": chosen.components.pipe.transformer,
        "text_encoder": chosen.components.pipe.text_encoder,
        "encoder": chosen.components.pipe.vae.encoder,
        "decoder": chosen.components.pipe.vae.decoder,
    }
    for name, part in parts.items():
        part.register_forward_pre_hook(listen(name))
    chosen.generate(
        video_job(reference_mode="start"),
        references=ReferenceImages(start=Image.new("RGB", (32, 32))),
        on_step=lambda *_: None,
    )
    assert alone == {name: {name == "transformer"} for name in parts}
    assert torch.backends.cuda.flash_sdp_enabled()
    assert far(clip(chosen, video_job()), clip(wan, video_job())) <= LEVELS


@pytest.mark.parametrize("cache", [None, "first_block", "taylorseer"])
def test_blocks_are_compiled_once_for_all_jobs(
    wan: WanPipeline,
    wan_checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    cache: str | None,
) -> None:
    """Compiling takes a minute on a GPU: a cache that comes and goes with every job must not ask for it
    again. Here only the tracing is done, which is what fails on code that cannot be compiled."""
    graphs: list[int] = []

    def counting(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(1)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    compiled = pipeline(wan_checkpoint, compiled=True, cache=cache)
    job = video_job(steps=6)
    expected = clip(wan, job) if cache is None else clip(pipeline(wan_checkpoint, cache=cache), job)
    assert far(clip(compiled, job), expected) <= LEVELS
    once = len(graphs)
    assert 0 < once <= len(compiled.components.pipe.transformer.blocks)
    assert far(clip(compiled, video_job(steps=6)), expected) <= LEVELS
    assert len(graphs) == once


def test_a_few_step_checkpoint_runs_without_guidance(wan: WanPipeline, wan_checkpoint: Checkpoint) -> None:
    """Its guidance is built in; assets tell what was used, not what was asked for."""
    few = pipeline(wan_checkpoint, few_steps=True)
    made = few.generate(video_job(guidance_scale=6.5, negative_prompt="fog"), on_step=lambda *_: None)
    assert made.asset_metadata["guidance_scale"] == 1.0
    assert far(clip(few, video_job()), clip(wan, video_job(guidance_scale=1.0))) <= LEVELS


def test_half_precision_is_chosen_by_name(wan_checkpoint: Checkpoint) -> None:
    """Also where the device would take another; the VAE stays in single."""
    half = pipeline(wan_checkpoint, dtype="bfloat16")
    clip(half, video_job(steps=1))
    assert half.info()["dtype"] == "bfloat16"
    assert half.components.pipe.transformer.proj_out.weight.dtype == torch.bfloat16
    assert half.components.pipe.vae.dtype == torch.float32


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_the_device_chooses_where_nothing_is_said(device: str, dtype: torch.dtype) -> None:
    """Half precision is slow on a CPU, and Wan's text encoder overflows in float16."""
    assert WanOptions().dtype_on(torch.device(device)) == dtype


def test_group_offload_without_a_gpu_is_refused(wan_checkpoint: Checkpoint) -> None:
    """Before anything is read: there is nothing to offload from."""
    wan = WanPipeline(wan_checkpoint, device=CPU, options=WanOptions(grouped=True))
    with pytest.raises(ModelLoadError, match="OURVIDZ_WAN_GROUP_OFFLOAD needs a GPU"):
        wan.load()
    assert wan.info()["loaded"] is False


def test_what_is_moved_in_groups_makes_the_same_clip(
    wan: WanPipeline, wan_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved from the CPU to the CPU here: the hooks are real, and so are step caches on top of them."""
    monkeypatch.setattr(WanOptions, "check", lambda *_: None)
    grouped = WanPipeline(wan_checkpoint, device=CPU, cap=64, options=WanOptions(grouped=True))
    assert far(clip(grouped, video_job()), clip(wan, video_job())) <= LEVELS
    transformer, text_encoder = grouped.components.pipe.transformer, grouped.components.pipe.text_encoder
    assert any(hasattr(block, "_diffusers_hook") for block in transformer.blocks)
    assert any(hasattr(part, "_diffusers_hook") for part in text_encoder.modules())
    assert not any(hasattr(part, "_diffusers_hook") for part in grouped.components.pipe.vae.modules())
    job = video_job(steps=6)
    options = WanOptions(grouped=True, cache="first_block", threshold=0.5, previews=False)
    both = WanPipeline(wan_checkpoint, device=CPU, cap=64, options=options)
    cached = pipeline(wan_checkpoint, cache="first_block", threshold=0.5)
    assert far(clip(both, job), clip(cached, job)) <= LEVELS
    assert far(clip(both, job), clip(cached, job)) <= LEVELS


def test_info_tells_what_was_chosen(wan_checkpoint: Checkpoint) -> None:
    """An operator sees what is in force, not what the file of settings says."""
    options = WanOptions(attention="math", cache="mag", threshold=0.1, tiled=True)
    told = WanPipeline(wan_checkpoint, options=options).info()
    expected = {
        "attention": "math",
        "cache": "mag",
        "cache_threshold": 0.1,
        "vae_tiling": "always",
        "compiled": False,
        "few_steps": False,
        "group_offload": False,
    }
    assert {name: told[name] for name in expected} == expected
