"""How exact the exact copies of the exported folder are."""

from __future__ import annotations

import diffusers
import numpy as np
import torch
from PIL import Image

from ourvidz.jobs.job import ImageJob
from ourvidz.jobs.ranges import EXACT_COPY_DENOISE
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from training.sdxl.models import NATIVE_PX
from training.sdxl.vae import to_tensor
from training.world import Pixels, random_scene, render

STAGE = 9
STEPS = 10
"""What the door gives a copy at the most strength that one may have, which is also the usual one."""


def losses_db(pipeline: SDXLPipeline, vae: diffusers.AutoencoderKL, *, count: int, seed: int) -> list[float]:
    """By how many decibels exact copies of held-out pictures lie below what the VAE alone makes of them."""
    found = []
    for k in range(count):
        scene = random_scene(np.random.default_rng((seed, STAGE, k)), held_out=True)
        picture = render(scene, NATIVE_PX, NATIVE_PX)
        found.append(
            decibels(_round_trip(vae, picture), picture) - decibels(_copy(pipeline, picture, seed=k), picture)
        )
    return found


def decibels(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures: more is closer."""
    apart = one.astype(np.float64) - other
    return float(10 * np.log10(255**2 / max(float(np.mean(apart**2)), 1e-9)))


def _copy(pipeline: SDXLPipeline, picture: Pixels, *, seed: int) -> Pixels:
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
    made = pipeline.generate(job, reference=Image.fromarray(picture), on_step=lambda _done, _total: None)
    return np.asarray(made.images[0])


@torch.no_grad()
def _round_trip(vae: diffusers.AutoencoderKL, picture: Pixels) -> Pixels:
    decoded = vae.decode(vae.encode(to_tensor(picture[None])).latent_dist.mode()).sample[0]
    levels = decoded.clamp(-1, 1).add(1).mul(127.5).round().permute(1, 2, 0)
    pixels: Pixels = levels.numpy().astype(np.uint8)
    return pixels
