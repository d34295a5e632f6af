"""SDXL at its full size on a GPU, with random weights: time and memory do not depend on the values.

1024x1024 px, 25 steps, with guidance; one, three and six images, eager and compiled. The text encoders have
the real widths and two layers only: they run once a job.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers

from benchmarks import gpu
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from training.untrained import sdxl as untrained

COUNTS: tuple[Literal[1, 3, 6], ...] = (1, 3, 6)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the components; the defaults are those of SDXL 1.0.

    blocks: transformer layers in each block of the UNet's three levels; the first level has none.
    """

    channels: tuple[int, int, int] = (320, 640, 1280)
    blocks: tuple[int, int, int] = (1, 2, 10)
    heads: tuple[int, int, int] = (5, 10, 20)
    text_widths: tuple[int, int] = (768, 1280)
    vae_channels: tuple[int, int, int, int] = (128, 256, 512, 512)


FULL = Sizes()
JOB = ImageJob(
    id="bench",
    type="sdxl_image_high",
    user_id="bench",
    expected_time=42,
    prompt="a lighthouse above the sea",
    steps=25,
    guidance_scale=7.5,
    width=1024,
    height=1024,
    seed=7,
)


def measure(sizes: Sizes = FULL, job: ImageJob = JOB) -> list[dict[str, Any]]:
    """One row for each configuration and number of images: seconds of the second job, images a second, and
    the peak GPU memory (GiB; None without a GPU)."""
    with tempfile.TemporaryDirectory(prefix="ourvidz-bench-") as folder:
        write_checkpoint(Path(folder), sizes)
        return [
            row
            for name, options in configurations()
            for row in measure_configuration(name, Path(folder), options, job)
        ]


def configurations() -> Iterator[tuple[str, SDXLOptions]]:
    """The measured options of the pipeline, by name."""
    yield "eager", SDXLOptions(previews=False)
    yield "compiled", SDXLOptions(previews=False, compiled=True, channels_last=True)


def write_checkpoint(folder: Path, sizes: Sizes) -> None:
    """Write a checkpoint with random half-precision weights into `folder`, in the diffusers layout."""
    untrained.build(folder)
    torch.manual_seed(0)
    kinds = {
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }
    for (name, kind), width in zip(kinds.items(), sizes.text_widths, strict=True):
        config = transformers.CLIPTextConfig.from_pretrained(folder / name)
        config.update({"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width})
        kind(config).half().save_pretrained(folder / name)
    build_unet(sizes).half().save_pretrained(folder / "unet")
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": sizes.vae_channels,
        "layers_per_block": 2,
        "sample_size": 1024,
        "force_upcast": True,
    }
    diffusers.AutoencoderKL(**vae).half().save_pretrained(folder / "vae")


def build_unet(sizes: Sizes) -> diffusers.UNet2DConditionModel:
    """Build SDXL's UNet with random weights. Its added conditions are six `time_ids`, each embedded in 256
    dimensions, and the pooled text embedding."""
    return diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=sizes.channels,
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=sizes.blocks,
        attention_head_dim=sizes.heads,
        use_linear_projection=True,
        cross_attention_dim=sum(sizes.text_widths),
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + sizes.text_widths[1],
    )


def measure_configuration(
    name: str, folder: Path, options: SDXLOptions, job: ImageJob
) -> Iterator[dict[str, Any]]:
    """Load the pipeline; for each number of images run a job to warm up and compile, then measure a
    second."""
    sdxl = SDXLPipeline(Checkpoint(folder, "folder"), options=options)
    for count in COUNTS:
        counted = job.model_copy(update={"num_images": count})
        sdxl.generate(counted, on_step=lambda *_: None)
        gpu.reset_peak()
        step_times: list[float] = []
        started = gpu.now()
        sdxl.generate(counted, on_step=lambda *_, times=step_times: times.append(gpu.now()))
        seconds = gpu.now() - started
        yield {
            "way": name,
            "pictures": count,
            "seconds": seconds,
            "pictures_per_s": count / seconds,
            "share_outside": 1 - (step_times[-1] - step_times[0]) / seconds,
            "peak_gib": gpu.peak_gib(),
        }
    sdxl.unload()


def format_row(row: dict[str, Any]) -> str:
    """One row as a line of text."""
    return (
        f"{row['way']:9} {row['pictures']} images {row['seconds']:7.2f} s   "
        f"{row['pictures_per_s']:6.2f} a second   "
        f"{row['share_outside']:4.0%} outside the denoiser   peak {gpu.format_peak(row['peak_gib'])}"
    )
