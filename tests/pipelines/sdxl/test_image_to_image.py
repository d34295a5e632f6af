from __future__ import annotations

from collections.abc import Callable
from shutil import copytree

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ourvidz.errors import Cancelled, I2IPipelineError, InvalidParameters, OutOfMemory
from ourvidz.jobs.job import ImageJob
from ourvidz.pipelines.base import GeneratedImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline

MakeJob = Callable[..., ImageJob]
LEVELS = 2
"""How far the 8-bit levels of two equal pictures may lie apart: batches round differently."""


@pytest.fixture(scope="module")
def hills() -> Image.Image:
    """A picture wider than high: sky, hills, and a lake in the middle."""
    rows, columns = np.mgrid[0:60, 0:120]
    levels = np.stack([rows * 4, columns * 2, 255 - rows * 3], axis=-1).astype(np.uint8)
    levels[20:40, 40:80] = (20, 60, 200)
    return Image.fromarray(levels)


@pytest.fixture(scope="module")
def modify(image_job: MakeJob) -> MakeJob:
    """Jobs that change a reference."""
    return lambda **changed: image_job(
        **({"reference": "u/p.png", "denoise_strength": 0.5, "steps": 4} | changed)
    )


@pytest.fixture(scope="module")
def copy(image_job: MakeJob) -> MakeJob:
    """Exact copies as the door makes them."""

    def make(denoise: float, **changed: object) -> ImageJob:
        fixed = {"prompt": "", "exact_copy_mode": True, "reference": "u/p.png", "guidance_scale": 1.0}
        steps = {"denoise_strength": denoise, "steps": round(6 + 4 * denoise / 0.05)}
        return image_job(**(fixed | steps | changed))

    return make


def made(sdxl: SDXLPipeline, job: ImageJob, reference: Image.Image) -> GeneratedImages:
    return sdxl.generate(job, reference=reference, on_step=lambda *_: None)


def levels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def far(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(levels(one) - levels(other)).max())


def runs(sdxl: SDXLPipeline, generate: Callable[[], GeneratedImages]) -> tuple[list[int], GeneratedImages]:
    """How many rows the UNet was given in every pass, and what came of it."""
    rows: list[int] = []
    hook = sdxl._pipe.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        return rows, generate()
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("steps", "denoise", "run"), [(10, 0.5, 5), (25, 0.15, 3), (4, 0.15, 1), (3, 0.0, 1), (2, 1.0, 2)]
)
def test_a_modification_runs_its_share_of_the_steps(
    sdxl: SDXLPipeline, modify: MakeJob, hills: Image.Image, steps: int, denoise: float, run: int
) -> None:
    """Steps times strength, at least one; both numbers are reported."""
    job = modify(steps=steps, denoise_strength=denoise)
    rows, found = runs(sdxl, lambda: made(sdxl, job, hills))
    assert rows == [2] * run
    told = found.asset_metadata
    assert (told["steps"], told["effective_steps"], told["denoise_strength"]) == (steps, run, denoise)


@pytest.mark.parametrize(("denoise", "run"), [(0.05, 10), (0.025, 8), (0.001, 6)])
def test_an_exact_copy_really_runs_its_steps(
    sdxl: SDXLPipeline, copy: MakeJob, hills: Image.Image, denoise: float, run: int
) -> None:
    """One pass of the UNet a step: without guidance there is no second one."""
    rows, found = runs(sdxl, lambda: made(sdxl, copy(denoise), hills))
    assert rows == [1] * run
    assert found.asset_metadata["effective_steps"] == run
    assert found.asset_metadata["guidance_scale"] == 1.0
    assert found.asset_metadata["negative_prompt_used"] is False


def test_an_exact_copy_without_strength_is_the_reference_itself(
    sdxl: SDXLPipeline, copy: MakeJob, hills: Image.Image
) -> None:
    """No pass of the UNet or the VAE: only the size changes."""
    rows, found = runs(sdxl, lambda: made(sdxl, copy(0.0, num_images=3), hills))
    expected = hills.crop((30, 0, 90, 60)).resize((64, 64), Image.Resampling.LANCZOS)
    assert rows == []
    assert [far(image, expected) <= 1 for image in found.images] == [True] * 3
    assert (found.seeds, found.asset_metadata["effective_steps"]) == ([7, 8, 9], 0)


def test_an_exact_copy_of_hardly_any_strength_is_a_copy(
    sdxl: SDXLPipeline, copy: MakeJob, hills: Image.Image
) -> None:
    """A strength that single precision takes for none is above 0 all the same, and no black picture."""
    [expected], [found] = (made(sdxl, copy(denoise), hills).images for denoise in (1e-9, 5e-324))
    assert far(expected, found) <= 1


def test_the_middle_of_the_reference_is_used(sdxl: SDXLPipeline, modify: MakeJob, hills: Image.Image) -> None:
    """A wide reference is cut, not squeezed: what lies outside the middle changes nothing."""
    painted_over = hills.copy()
    painted_over.paste((255, 0, 0), (0, 0, 20, 60))
    painted_over.paste((255, 0, 0), (100, 0, 120, 60))
    one, other = made(sdxl, modify(), hills), made(sdxl, modify(), painted_over)
    assert far(one.images[0], other.images[0]) <= LEVELS
    assert one.asset_metadata["resize_policy"] == "center_crop"


def test_the_reference_and_the_prompt_both_shape_the_picture(
    sdxl: SDXLPipeline, modify: MakeJob, hills: Image.Image
) -> None:
    """Otherwise one of them was taken for nothing."""
    plain = made(sdxl, modify(), hills).images[0]
    mirrored = made(sdxl, modify(), hills.rotate(180)).images[0]
    assert far(plain, mirrored) > LEVELS
    for changed in ({"prompt": "a blue square"}, {"seed": 8}, {"denoise_strength": 0.9}, {"steps": 8}):
        assert far(plain, made(sdxl, modify(**changed), hills).images[0]) > LEVELS, changed


@pytest.mark.parametrize("count", [3, 6])
def test_a_batch_is_its_single_pictures(
    sdxl: SDXLPipeline, modify: MakeJob, hills: Image.Image, count: int
) -> None:
    """Callers pick one picture of a batch and ask for it again by its seed."""
    batch = made(sdxl, modify(num_images=count), hills)
    singles = [made(sdxl, modify(seed=7 + k), hills).images[0] for k in range(count)]
    assert all(far(one, other) <= LEVELS for one, other in zip(batch.images, singles, strict=True))


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_a_cancelled_job_stops_before_the_next_step(
    sdxl: SDXLPipeline, modify: MakeJob, hills: Image.Image, stop_at: int
) -> None:
    """It ends as cancelled: an image-to-image failure would fall back and paint on."""

    def on_step(done: int, _: int) -> None:
        if done == stop_at:
            raise Cancelled("enough")

    def cancelled() -> GeneratedImages:
        with pytest.raises(Cancelled):
            sdxl.generate(modify(), reference=hills, on_step=on_step)
        return GeneratedImages(images=[], seeds=[], seconds=0.0)

    rows, _ = runs(sdxl, cancelled)
    assert len(rows) == stop_at


class Stopped(Exception):
    """Something only the listener knows."""


def test_whatever_the_listener_raises_comes_through(
    sdxl: SDXLPipeline, modify: MakeJob, hills: Image.Image
) -> None:
    """An attempt whose lease is lost must end as that, whatever the pipeline knows of leases."""

    def on_step(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        sdxl.generate(modify(), reference=hills, on_step=on_step)


def test_the_tiny_profile_caps_references_too(tiny: Checkpoint, modify: MakeJob, hills: Image.Image) -> None:
    """A laptop renders a production request small, keeps its aspect and says so."""
    found = made(SDXLPipeline(tiny, cap=64), modify(width=1024, height=512), hills)
    assert found.images[0].size == (64, 32)
    assert found.metadata["size_capped"] is True


def test_a_second_order_scheduler_begins_at_a_whole_step(
    tiny: Checkpoint, modify: MakeJob, hills: Image.Image
) -> None:
    """Its timesteps come in pairs."""
    sdxl = SDXLPipeline(tiny, options=SDXLOptions(scheduler="heun"))
    heard: list[tuple[int, int]] = []
    sdxl.generate(modify(), reference=hills, on_step=lambda done, total: heard.append((done, total)))
    assert heard == [(done, 3) for done in range(4)]


def test_a_failing_pass_is_named_and_leaves_the_pipeline_in_order(
    sdxl: SDXLPipeline, modify: MakeJob, hills: Image.Image
) -> None:
    """The caller of the pipeline falls back on this error alone."""

    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    hook = sdxl._pipe.vae.encoder.register_forward_pre_hook(fail)
    try:
        with pytest.raises(I2IPipelineError) as raised:
            made(sdxl, modify(), hills)
    finally:
        hook.remove()
    assert "shapes" not in raised.value.message
    assert raised.value.__context__ is None, "the first error's traceback would keep its tensors alive"
    assert made(sdxl, modify(), hills)


def test_running_out_of_memory_is_not_a_reason_to_fall_back(
    sdxl: SDXLPipeline, modify: MakeJob, hills: Image.Image
) -> None:
    """The ladder is climbed, and then another attempt may have more room."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = sdxl._pipe.vae.encoder.register_forward_pre_hook(fail)
    try:
        with pytest.raises(OutOfMemory):
            made(sdxl, modify(), hills)
    finally:
        hook.remove()


def test_a_job_and_its_reference_belong_together(
    sdxl: SDXLPipeline, image_job: MakeJob, modify: MakeJob, hills: Image.Image
) -> None:
    """Ignoring a reference would deliver a picture that only looks like an answer."""
    with pytest.raises(InvalidParameters, match="reference"):
        made(sdxl, image_job(), hills)
    with pytest.raises(InvalidParameters, match="reference"):
        sdxl.generate(modify(), on_step=lambda *_: None)


def test_what_was_done_with_the_reference_is_described(
    sdxl: SDXLPipeline, modify: MakeJob, image_job: MakeJob, hills: Image.Image
) -> None:
    """Callbacks are built from these fields, and jobs without a reference have none of them."""
    found = made(sdxl, modify(negative_prompt="fog"), hills)
    assert found.metadata["reference_backend"] == "img2img"
    assert found.asset_metadata == {
        "steps": 4,
        "effective_steps": 2,
        "guidance_scale": 6.0,
        "batch_size": 1,
        "denoise_strength": 0.5,
        "pipeline": "img2img",
        "resize_policy": "center_crop",
        "negative_prompt_used": True,
    }
    plain = sdxl.generate(image_job(), on_step=lambda *_: None)
    assert "reference_backend" not in plain.metadata
    assert not {"denoise_strength", "pipeline", "resize_policy"} & set(plain.asset_metadata)


@pytest.fixture(scope="module")
def distilled(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> SDXLPipeline:
    """A tiny pipeline whose UNet is told the guidance instead of being asked twice."""
    folder = tmp_path_factory.mktemp("distilled") / "checkpoint"
    copytree(tiny.path, folder)
    config = diffusers.UNet2DConditionModel.load_config(tiny.path / "unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = diffusers.UNet2DConditionModel.from_config(config, time_cond_proj_dim=16)
    unet.save_pretrained(folder / "unet")
    return SDXLPipeline(Checkpoint(folder, "folder"), cap=128)


def test_a_negative_prompt_that_no_model_read_is_not_told_as_used(
    distilled: SDXLPipeline, sdxl: SDXLPipeline, modify: MakeJob, hills: Image.Image
) -> None:
    """UNets that take the guidance as a number never see the negative prompt, however high it is."""
    job = modify(negative_prompt="fog", guidance_scale=6.0)
    distilled.load()
    rows, found = runs(distilled, lambda: made(distilled, job, hills))
    assert rows == [1, 1]
    assert found.asset_metadata["guidance_scale"] == 6.0
    assert (found.asset_metadata["negative_prompt_used"], found.negative_prompt_used) == (False, False)
    assert made(sdxl, job, hills).asset_metadata["negative_prompt_used"] is True


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m_karras", "euler_a", "lcm"])
def test_an_exact_copy_runs_whatever_scheduler_paints(
    tiny: Checkpoint, copy: MakeJob, hills: Image.Image, scheduler: str
) -> None:
    """Its own steps are Euler's: what the chosen scheduler is told with a step must not reach them."""
    sdxl = SDXLPipeline(tiny, options=SDXLOptions(scheduler=scheduler))
    sdxl.load()
    rows, _ = runs(sdxl, lambda: made(sdxl, copy(0.001), hills))
    assert rows == [1] * 6
