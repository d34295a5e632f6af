"""The video VAE: frames, latent frames, and the conversion of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.vae import VideoVAE, frames_to_generate, image_tensor, to_images


@pytest.fixture
def vae(wan: WanPipeline) -> VideoVAE:
    return VideoVAE(wan.components.pipe.vae)


@pytest.mark.parametrize(
    ("requested", "generated"),
    [(1, 1), (2, 5), (4, 5), (5, 5), (6, 9), (81, 81), (82, 85), (83, 85), (161, 161)],
)
def test_the_next_4n_plus_1_frames_are_generated(requested: int, generated: int) -> None:
    """The first latent frame stands for one frame, each later one for four."""
    assert frames_to_generate(requested) == generated


def test_a_reference_is_cropped_around_its_centre_without_distortion() -> None:
    """A distorted reference would distort the clip."""
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("lime", (30, 0, 60, 30))
    pixels = image_tensor(wide, 64, 64)
    assert pixels.shape == (3, 64, 64)
    inside = pixels[:, :, 6:-6]
    assert torch.allclose(inside, torch.tensor([-1.0, 1.0, -1.0]).view(3, 1, 1).expand_as(inside), atol=0.02)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_a_reference_of_another_mode_is_converted_to_rgb(mode: str) -> None:
    """A caller of the pipeline may pass an image as Pillow opened it."""
    assert image_tensor(Image.new(mode, (20, 30)), 32, 48).shape == (3, 48, 32)


def test_the_first_latent_frame_depends_on_the_first_frame_only(vae: VideoVAE) -> None:
    """So one image is enough to fix a clip's start."""
    image = torch.rand(3, 32, 32) * 2 - 1
    with torch.no_grad():
        single, still = vae.encode(image), vae.encode(image, frames=9)
    assert single.shape == vae.shape(1, 32, 32)
    assert still.shape == vae.shape(9, 32, 32) == vae.shape(7, 32, 32)
    assert torch.allclose(single[:, :, 0], still[:, :, 0], atol=1e-5)
    assert not torch.allclose(still[:, :, 0], still[:, :, -1], atol=1e-2)


def test_latents_are_normalized(vae: VideoVAE) -> None:
    """The model mixes them with noise of standard deviation 1."""
    with torch.no_grad():
        latents = vae.encode(torch.rand(3, 32, 32) * 2 - 1)
    assert 0.3 < latents.std() < 3
    assert latents.mean().abs() < 1


def test_shape_size_and_number_of_frames_are_consistent(vae: VideoVAE) -> None:
    """83 frames need latents for 85."""
    shape = vae.shape(83, 96, 64)
    assert shape == (1, 16, 22, 8, 12)
    assert (vae.size(shape), vae.num_frames(shape)) == ((96, 64), 85)
    assert vae.zeros(shape).shape == shape


def test_frames_become_images_in_order() -> None:
    """From -1..1 to 0..255; values outside are clamped."""
    frames = torch.stack([torch.full((3, 4, 6), level) for level in (-1.5, -1.0, 0.0, 1.0, 1.5)])
    images = to_images(frames)
    assert [image.size for image in images] == [(6, 4)] * 5
    assert [int(np.asarray(image)[0, 0, 0]) for image in images] == [0, 0, 128, 255, 255]
