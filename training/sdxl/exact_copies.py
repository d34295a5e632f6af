"""Fidelity of exact-copy jobs with an exported folder."""

from __future__ import annotations

import diffusers
import numpy as np
import torch
from PIL import Image

from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.ranges import EXACT_COPY_DENOISE
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from training.scenes import Pixels, random_scene, render
from training.sdxl.models import NATIVE_PX
from training.sdxl.vae import to_tensor

STAGE = 9
STEPS = 10
"""Steps of an exact copy at its largest denoise strength, which is also the default."""


def losses_db(pipeline: SDXLPipeline, vae: diffusers.AutoencoderKL, *, count: int, seed: int) -> list[float]:
    """The quality lost, in decibels, by exact copies of `count` held-out images relative to encoding and
    decoding them."""
    losses = []
    for k in range(count):
        scene = random_scene(np.random.default_rng((seed, STAGE, k)), held_out=True)
        image = render(scene, NATIVE_PX, NATIVE_PX)
        reconstruction, copy = _reconstruct(vae, image), _copy(pipeline, image, seed=k)
        losses.append(psnr_db(reconstruction, image) - psnr_db(copy, image))
    return losses


def psnr_db(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio of two 8-bit images, in decibels."""
    difference = one.astype(np.float64) - other
    return float(10 * np.log10(255**2 / max(float(np.mean(difference**2)), 1e-9)))


def _copy(pipeline: SDXLPipeline, image: Pixels, *, seed: int) -> Pixels:
    """Generate an exact copy of an image with the pipeline."""
    job = ImageJob(
        id=f"copy-{seed}",
        type="sdxl_image_fast",
        expected_time=30,
        prompt="",
        reference="a/picture.png",
        exact_copy_mode=True,
        denoise_strength=EXACT_COPY_DENOISE,
        guidance_scale=1.0,
        steps=STEPS,
        width=NATIVE_PX,
        height=NATIVE_PX,
        seed=seed,
    )
    result = pipeline.generate(job, reference=Image.fromarray(image), on_step=lambda _done, _total: None)
    return np.asarray(result.images[0])


@torch.no_grad()
def _reconstruct(vae: diffusers.AutoencoderKL, image: Pixels) -> Pixels:
    """Encode and decode an image with the VAE."""
    decoded = vae.decode(vae.encode(to_tensor(image[None])).latent_dist.mode()).sample[0]
    levels = decoded.clamp(-1, 1).add(1).mul(127.5).round().permute(1, 2, 0)
    pixels: Pixels = levels.numpy().astype(np.uint8)
    return pixels
