"""Wan 1.3B at its full size on a GPU, with random weights: time and memory do not depend on the values.

480x832 px, 81 frames, 25 steps, with guidance. The text encoder has one of its 24 layers: it runs once a job.
Step caches with a threshold skip a number of steps that depends on the weights; the other caches do not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from benchmarks import gpu
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.caches import CACHES
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from training.untrained import wan as untrained


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the components; the defaults are those of Wan 1.3B."""

    heads: int = 12
    head_width: int = 128
    layers: int = 30
    feed_forward: int = 8960
    text_width: int = 4096
    vae_width: int = 96


FULL = Sizes()
JOB = VideoJob(
    id="bench",
    type="video_fast",
    user_id="bench",
    expected_time=180,
    prompt="a lighthouse above the sea",
    steps=25,
    guidance_scale=6.5,
    width=480,
    height=832,
    frames=81,
    seed=7,
)


def measure(sizes: Sizes = FULL, job: VideoJob = JOB) -> list[dict[str, Any]]:
    """One row for each configuration: seconds of the second job, the share of them outside the denoiser,
    and the peak GPU memory (GiB; None without a GPU)."""
    with tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder:
        write_checkpoint(Path(folder), sizes)
        return [measure_configuration(name, Path(folder), options, job) for name, options in configurations()]


def configurations() -> Iterator[tuple[str, WanOptions]]:
    """The measured options of the pipeline, by name."""
    yield "eager", WanOptions(previews=False)
    yield "compiled", WanOptions(previews=False, compiled=True)
    for cache in CACHES:
        yield f"cache {cache}", WanOptions(previews=False, cache=cache)
    yield "group offload", WanOptions(previews=False, grouped=torch.cuda.is_available())


def write_checkpoint(folder: Path, sizes: Sizes) -> None:
    """Write a checkpoint with random weights into `folder`, in the diffusers layout."""
    untrained.build(folder)
    vocab_size = transformers.AutoConfig.from_pretrained(folder / "text_encoder").vocab_size
    torch.manual_seed(0)
    text = transformers.UMT5Config(
        vocab_size=vocab_size, d_model=sizes.text_width, num_layers=1, num_heads=64, d_ff=10240
    )
    parts = {
        "text_encoder": transformers.UMT5EncoderModel(text).bfloat16(),
        "vae": diffusers.AutoencoderKLWan(base_dim=sizes.vae_width),
        "transformer": diffusers.WanTransformer3DModel(
            num_attention_heads=sizes.heads,
            attention_head_dim=sizes.head_width,
            num_layers=sizes.layers,
            ffn_dim=sizes.feed_forward,
            text_dim=sizes.text_width,
        ).bfloat16(),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)


def measure_configuration(name: str, folder: Path, options: WanOptions, job: VideoJob) -> dict[str, Any]:
    """Load the pipeline, run a job to warm up and compile, then measure a second."""
    wan = WanPipeline(Checkpoint(folder, "folder"), options=options)
    wan.generate(job, on_step=lambda *_: None)
    gpu.reset_peak()
    step_times: list[float] = []
    started = gpu.now()
    wan.generate(job, on_step=lambda *_: step_times.append(gpu.now()))
    seconds = gpu.now() - started
    wan.unload()
    denoising = step_times[-1] - step_times[0]
    return {
        "way": name,
        "seconds": seconds,
        "seconds_a_step": denoising / (len(step_times) - 1),
        "share_outside": 1 - denoising / seconds,
        "peak_gib": gpu.peak_gib(),
    }


def format_row(row: dict[str, Any]) -> str:
    """One row as a line of text."""
    return (
        f"{row['way']:18} {row['seconds']:7.1f} s   {row['seconds_a_step']:6.2f} s a step   "
        f"{row['share_outside']:4.0%} outside the denoiser   peak {gpu.format_peak(row['peak_gib'])}"
    )
