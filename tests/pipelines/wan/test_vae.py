from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.vae import VideoVAE, frames_to_generate, image_tensor, to_images


@pytest.fixture
def codec(wan: WanPipeline) -> VideoVAE:
    return VideoVAE(wan.components.pipe.vae)


@pytest.mark.parametrize(
    ("asked", "made"), [(1, 1), (2, 5), (4, 5), (5, 5), (6, 9), (81, 81), (82, 85), (83, 85), (161, 161)]
)
def test_the_model_makes_the_next_4n_plus_1_frames(asked: int, made: int) -> None:
    """Its latents stand for one frame and then for four each; fewer than asked would be too few."""
    assert frames_to_generate(asked) == made


def test_a_reference_is_cut_around_its_centre_and_never_distorted() -> None:
    """A squeezed reference would teach the clip squeezed things."""
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("lime", (30, 0, 60, 30))
    pixels = image_tensor(wide, 64, 64)
    assert pixels.shape == (3, 64, 64)
    inside = pixels[:, :, 6:-6]
    assert torch.allclose(inside, torch.tensor([-1.0, 1.0, -1.0]).view(3, 1, 1).expand_as(inside), atol=0.02)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_a_reference_of_another_mode_becomes_rgb(mode: str) -> None:
    """Whoever calls the pipeline directly may hand over what Pillow opened."""
    assert image_tensor(Image.new(mode, (20, 30)), 32, 48).shape == (3, 48, 32)


def test_the_first_latent_frame_is_the_first_frame_alone(codec: VideoVAE) -> None:
    """That is why one picture is enough to hold a clip's start."""
    picture = torch.rand(3, 32, 32) * 2 - 1
    with torch.no_grad():
        alone, still = codec.encode(picture), codec.encode(picture, frames=9)
    assert alone.shape == codec.shape(1, 32, 32)
    assert still.shape == codec.shape(9, 32, 32) == codec.shape(7, 32, 32)
    assert torch.allclose(alone[:, :, 0], still[:, :, 0], atol=1e-5)
    assert not torch.allclose(still[:, :, 0], still[:, :, -1], atol=1e-2)


def test_latents_have_about_the_size_of_noise(codec: VideoVAE) -> None:
    """The model mixes them with noise of deviation 1; raw latents may be far from that."""
    with torch.no_grad():
        latents = codec.encode(torch.rand(3, 32, 32) * 2 - 1)
    assert 0.3 < latents.std() < 3
    assert latents.mean().abs() < 1


def test_shape_size_and_frames_agree(codec: VideoVAE) -> None:
    """Three views of one thing."""
    shape = codec.shape(83, 96, 64)
    assert shape == (1, 16, 22, 8, 12)
    assert (codec.size(shape), codec.num_frames(shape)) == ((96, 64), 85)
    assert codec.zeros(shape).shape == shape


def test_frames_come_back_as_pictures_in_order() -> None:
    """From -1..1 to 0..255; what lies outside is cut off, never wrapped around."""
    frames = torch.stack([torch.full((3, 4, 6), level) for level in (-1.5, -1.0, 0.0, 1.0, 1.5)])
    made = to_images(frames)
    assert [image.size for image in made] == [(6, 4)] * 5
    assert [int(np.asarray(image)[0, 0, 0]) for image in made] == [0, 0, 128, 255, 255]
