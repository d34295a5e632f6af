from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.errors import OutOfMemory
from ourvidz.jobs.job import VideoJob
from ourvidz.pipelines.base import GeneratedVideo, ReferenceImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.wan.checkpoint import find_wan
from ourvidz.pipelines.wan.options import WanOptions
from ourvidz.pipelines.wan.pipeline import WanPipeline
from ourvidz.pipelines.wan.vae import VideoVAE, image_tensor, tiling
from tests.factories import video_job

MakeJob = Callable[..., VideoJob]
LEVELS = 2


def made(wan: WanPipeline, job: VideoJob, references: ReferenceImages | None = None) -> GeneratedVideo:
    return wan.generate(job, references=references, on_step=lambda *_: None)


def far(one: GeneratedVideo, other: GeneratedVideo) -> int:
    first, second = (np.stack([np.asarray(f) for f in clip.frames]).astype(int) for clip in (one, other))
    return int(np.abs(first - second).max())


@contextmanager
def failing(module: torch.nn.Module, times: int) -> Iterator[list[int]]:
    """Memory runs out in `module` so many times; yields the longer side of all its inputs."""
    sides: list[int] = []

    def hook(_: object, args: tuple[torch.Tensor, ...], given: dict[str, torch.Tensor]) -> None:
        nonlocal times
        sides.append(max((args[0] if args else given["hidden_states"]).shape[-2:]))
        if times:
            times -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield sides
    finally:
        handle.remove()


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae.decoder"])
@pytest.mark.parametrize(("failures", "rung"), [(0, None), (1, "freed"), (2, "tiled")])
def test_every_rung_delivers_the_clip(wan: WanPipeline, part: str, failures: int, rung: str | None) -> None:
    """A caller gets what was ordered, however hard it was to make, and the callback tells how hard. A clip
    of the size of one tile has no seams."""
    job = video_job()
    expected = made(wan, job)
    model, _, inner = part.partition(".")
    module = getattr(wan.components.pipe, model).get_submodule(inner)
    if part == "text_encoder":
        module = module.encoder.block[0]  # the model's own inputs are tokens, without a width
    with failing(module, failures):
        found = made(wan, job)
    assert found.metadata.get("memory_rung") == rung
    assert far(found, expected) <= LEVELS


def test_what_is_denoised_is_not_denoised_again_for_the_vae(wan: WanPipeline) -> None:
    """Denoising takes minutes; the VAE comes last, and its failure must not cost them again."""
    ran: list[int] = []
    handle = wan.components.pipe.transformer.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with failing(wan.components.pipe.vae.decoder, 2):
            found = made(wan, video_job(steps=3, guidance_scale=1.0))
    finally:
        handle.remove()
    assert found.metadata["memory_rung"] == "tiled"
    assert len(ran) == 3


def test_memory_that_never_suffices_is_an_error_of_ours(wan: WanPipeline) -> None:
    """A silently smaller or shorter clip is no answer; the next job runs as if nothing had been."""
    with (
        failing(wan.components.pipe.transformer, 99) as tried,
        pytest.raises(OutOfMemory, match="5 frames of 32x32"),
    ):
        made(wan, video_job())
    assert len(tried) == 3
    assert "memory_rung" not in made(wan, video_job()).metadata


def test_the_vae_works_in_tiles_only_while_it_has_to(wan: WanPipeline) -> None:
    """Tiles cost time and blend seams, for pictures that go in as well as for clips that come out."""
    job = video_job(width=64, height=64, reference_mode="start")
    hills = ReferenceImages(start=Image.new("RGB", (64, 64), "olive"))
    vae = wan.components.pipe.vae
    with (
        failing(vae.encoder, 0) as encoded,
        failing(vae.decoder, 0) as decoded,
        failing(wan.components.pipe.transformer, 2),
    ):
        found = made(wan, job, hills)
    assert found.metadata["memory_rung"] == "tiled"
    # Whole on the two rungs that failed in the transformer.
    assert (encoded[:2], max(encoded[2:]), max(decoded)) == ([64, 64], 32, 4)
    assert {frame.size for frame in found.frames} == {(64, 64)}
    with failing(vae.decoder, 0) as decoded:
        made(wan, job, hills)
    assert set(decoded) == {8}


def test_an_operator_can_have_tiles_always(wan_checkpoint: Checkpoint) -> None:
    """Where it is known that the VAE does not fit, the first rungs are for nothing."""
    wan = WanPipeline(wan_checkpoint, options=WanOptions(tiled=True, previews=False))
    wan.load()
    with failing(wan.components.pipe.vae.decoder, 0) as decoded:
        found = made(wan, video_job(width=64, height=64))
    assert max(decoded) == 4
    assert "memory_rung" not in found.metadata


def test_tiles_are_nearly_what_the_whole_is() -> None:
    """Seams are blended; elsewhere the tiles show what the whole would, on the trained checkpoint."""
    wan = WanPipeline(find_wan(None), options=WanOptions(previews=False))
    wan.load()
    codec, hills = (
        VideoVAE(wan.components.pipe.vae),
        Image.linear_gradient("L").resize((96, 64)).convert("RGB"),
    )
    with torch.no_grad():
        latents = codec.encode(image_tensor(hills, 96, 64), frames=5)
        whole = codec.decode(latents)
        with tiling(wan.components.pipe.vae, True, (96, 64)):
            pieces = codec.decode(latents)
            again = codec.encode(image_tensor(hills, 96, 64), frames=5)
    assert (pieces.shape, again.shape) == (whole.shape, latents.shape)
    assert (pieces - whole).square().mean() < 4 * 10**-2.7  # 27 dB
    assert (again - latents).abs().mean() < 0.1 * latents.std()


def test_the_vae_has_its_own_tiles_back_after_a_failure(wan: WanPipeline) -> None:
    """Tiles that went on shrinking would end in seams everywhere."""
    before = (
        wan.components.pipe.vae.tile_sample_min_width,
        wan.components.pipe.vae.tile_sample_stride_height,
    )
    with failing(wan.components.pipe.vae.decoder, 99), pytest.raises(OutOfMemory):
        made(wan, video_job())
    assert (
        wan.components.pipe.vae.tile_sample_min_width,
        wan.components.pipe.vae.tile_sample_stride_height,
    ) == before
    assert not wan.components.pipe.vae.use_tiling


def test_a_listener_without_memory_is_not_tried_again(wan: WanPipeline) -> None:
    """What stops a job must end it, and never look like a failure of the model."""
    heard: list[int] = []

    def on_step(done: int, _: int) -> None:
        heard.append(done)
        raise MemoryError

    with pytest.raises(MemoryError):
        wan.generate(video_job(), on_step=on_step)
    assert heard == [0]
