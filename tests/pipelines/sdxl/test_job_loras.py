from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ourvidz.errors import Cancelled, ModelLoadError
from ourvidz.jobs.job import ImageJob, JobLora
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.lora import LoraFile
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline

MakeJob = Callable[..., ImageJob]

UNET = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
WORDS = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
RANK = 2


def write(path: Path, layer: str, rows: int, columns: int, seed: int) -> Path:
    """A LoRA file of that rank for one layer."""
    drawn = torch.Generator().manual_seed(seed)
    down, up = torch.randn(RANK, columns, generator=drawn), torch.randn(rows, RANK, generator=drawn)
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, path)
    return path


@pytest.fixture(scope="module")
def able(sdxl: SDXLPipeline, tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> SDXLPipeline:
    """A warm pipeline whose jobs may name `hills` (in the UNet) and `words` (in a text encoder)."""
    folder = tmp_path_factory.mktemp("loras")
    unet = sdxl._pipe.unet.get_submodule(UNET.removeprefix("unet.")).weight
    encoder = sdxl._pipe.text_encoder
    [query] = [m for name, m in encoder.named_modules() if name.endswith("layers.0.self_attn.q_proj")]
    files = (
        LoraFile("hills", write(folder / "hills.safetensors", UNET, *unet.shape, seed=3)),
        LoraFile("words", write(folder / "words.safetensors", WORDS, *query.weight.shape, seed=4)),
    )
    pipeline = SDXLPipeline(tiny, options=SDXLOptions(job_loras=files))
    pipeline.load()
    return pipeline


def named(*loras: tuple[str, float]) -> tuple[JobLora, ...]:
    return tuple(JobLora(name=name, weight=weight) for name, weight in loras)


def picture(sdxl: SDXLPipeline, job: ImageJob) -> np.ndarray:
    return np.asarray(sdxl.generate(job, on_step=lambda *_: None).images[0]).astype(int)


def weights(sdxl: SDXLPipeline) -> dict[str, torch.Tensor]:
    """A copy of every weight of the UNet and the text encoders."""
    return {
        f"{part}.{name}": weight.detach().clone()
        for part in ("unet", "text_encoder", "text_encoder_2")
        for name, weight in getattr(sdxl._pipe, part).named_parameters()
    }


def unchanged(sdxl: SDXLPipeline, before: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(weight, before[name]) for name, weight in weights(sdxl).items())


@pytest.mark.parametrize("asked", [("hills", 3.0), ("words", 2.0)])
def test_a_lora_is_on_for_its_job_alone(
    able: SDXLPipeline, image_job: MakeJob, asked: tuple[str, float]
) -> None:
    """The next caller must find the checkpoint, to the last bit; rounding would add up over the days."""
    before, plain = weights(able), picture(able, image_job())
    assert np.abs(plain - picture(able, image_job(loras=named(asked)))).max() > 2
    assert unchanged(able, before)
    assert np.array_equal(plain, picture(able, image_job()))


def test_weighted_prompts_follow_the_lora_of_their_job(able: SDXLPipeline, image_job: MakeJob) -> None:
    """What an encoder makes of the empty prompt is remembered; a job after another must not get it."""
    weighted = {"prompt": "a (red:1.3) circle", "compel_enabled": True}
    with_words = image_job(loras=named(("words", 2.0)), **weighted)
    first = picture(able, with_words)
    plain = picture(able, image_job(**weighted))
    assert np.abs(first - plain).max() > 2
    assert np.array_equal(first, picture(able, with_words))
    assert np.array_equal(plain, picture(able, image_job(**weighted)))


def test_several_loras_add_up(able: SDXLPipeline, image_job: MakeJob) -> None:
    """And each by its weight: twice the weight is another picture, a weight of 0 is none."""
    plain, one, other, none = (
        picture(able, image_job(loras=named(*asked)))
        for asked in ([], [("hills", 2.0)], [("hills", 2.0), ("words", 2.0)], [("hills", 0.0)])
    )
    assert np.abs(one - other).max() > 2
    assert np.abs(one - plain).max() > 2
    assert np.array_equal(plain, none)


def test_a_cancelled_job_takes_its_lora_along(able: SDXLPipeline, image_job: MakeJob) -> None:
    """Whatever ends a job: cancelled in the middle of its steps, or out of memory while weights are added."""
    before = weights(able)

    def stop(done: int, _: int) -> None:
        assert done == 0 or not unchanged(able, before)
        if done == 1:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        able.generate(image_job(steps=3, loras=named(("hills", 1.0), ("words", 1.0))), on_step=stop)
    assert unchanged(able, before)


def test_a_job_that_fails_takes_its_lora_along(able: SDXLPipeline, image_job: MakeJob) -> None:
    """Every rung of the memory ladder puts the files on anew, and none adds to the rung before."""
    before, job = weights(able), image_job(loras=named(("hills", 2.0)))
    expected = picture(able, job)
    failures = iter([True])

    def fail(*_: object) -> None:
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = able._pipe.unet.register_forward_pre_hook(fail)
    try:
        found = picture(able, job)
    finally:
        hook.remove()
    assert np.abs(expected - found).max() <= 2
    assert unchanged(able, before)


def test_a_lora_that_cannot_be_added_to_the_end_leaves_nothing(
    able: SDXLPipeline, image_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a file in the weights would be in every later picture."""
    before = weights(able)

    def out_of_memory(weight: float) -> None:
        raise torch.OutOfMemoryError(f"CUDA out of memory at {weight}")

    files = able._model._loras._loras
    monkeypatch.setattr(files["words"], "add", out_of_memory)
    with pytest.raises(Exception, match="Not enough memory"):
        picture(able, image_job(loras=named(("hills", 1.0), ("words", 1.0))))
    assert unchanged(able, before)


def test_the_callback_tells_which_loras_were_used(able: SDXLPipeline, image_job: MakeJob) -> None:
    """With the weights, so that a picture can be asked for again."""
    made = able.generate(image_job(loras=named(("hills", 0.5))), on_step=lambda *_: None)
    assert made.metadata["loras"] == [{"name": "hills", "weight": 0.5}]
    assert "loras" not in able.generate(image_job(), on_step=lambda *_: None).metadata


def test_a_worker_without_the_file_says_so(able: SDXLPipeline, image_job: MakeJob) -> None:
    """The shim and the worker were given different lists; a picture without the LoRA would hide that."""
    with pytest.raises(ModelLoadError, match="has no rivers"):
        picture(able, image_job(loras=named(("rivers", 1.0))))


def test_a_file_that_does_not_fit_is_heard_of_before_any_job(tiny: Checkpoint, tmp_path: Path) -> None:
    """An operator finds out when the worker starts, not a caller."""
    odd = write(tmp_path / "odd.safetensors", UNET, 5, 7, seed=1)
    with pytest.raises(ModelLoadError, match="another shape"):
        SDXLPipeline(tiny, options=SDXLOptions(job_loras=(LoraFile("odd", odd),))).load()


def test_info_names_them(able: SDXLPipeline) -> None:
    """Callers learn from the model page what they may ask for."""
    assert able.info()["job_loras"] == ["hills@1", "words@1"]
