"""LoRA files that jobs request: applied for one job, then removed without a trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ourvidz.errors import Cancelled, ModelLoadError
from ourvidz.jobs.job import JobLora
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.lora import LoraFile
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from tests.factories import image_job
from tests.pipelines.helpers import (
    MAX_DIFFERENCE,
    difference,
    first_passes,
    image_levels,
    no_progress,
    out_of_memory,
)

UNET_LAYER = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
TEXT_ENCODER_LAYER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
RANK = 2


def write_lora(path: Path, layer: str, rows: int, columns: int, seed: int) -> Path:
    """Write a LoRA with random weights for one layer."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(RANK, columns, generator=generator)
    up = torch.randn(rows, RANK, generator=generator)
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, path)
    return path


@pytest.fixture(scope="module")
def with_loras(
    sdxl: SDXLPipeline, sdxl_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> SDXLPipeline:
    """A loaded pipeline whose jobs may request `hills` (for the UNet) and `words` (for a text encoder)."""
    folder = tmp_path_factory.mktemp("loras")
    unet = sdxl._pipe.unet.get_submodule(UNET_LAYER.removeprefix("unet.")).weight
    modules = sdxl._pipe.text_encoder.named_modules()
    [query] = [module for name, module in modules if name.endswith("layers.0.self_attn.q_proj")]
    hills = write_lora(folder / "hills.safetensors", UNET_LAYER, *unet.shape, seed=3)
    words = write_lora(folder / "words.safetensors", TEXT_ENCODER_LAYER, *query.weight.shape, seed=4)
    options = SDXLOptions(job_loras=(LoraFile("hills", hills), LoraFile("words", words)))
    pipeline = SDXLPipeline(sdxl_checkpoint, options=options)
    pipeline.load()
    return pipeline


def requested(*loras: tuple[str, float]) -> tuple[JobLora, ...]:
    return tuple(JobLora(name=name, weight=weight) for name, weight in loras)


def weights(sdxl: SDXLPipeline) -> dict[str, torch.Tensor]:
    """A copy of every weight of the UNet and the text encoders."""
    return {
        f"{component}.{name}": weight.detach().clone()
        for component in ("unet", "text_encoder", "text_encoder_2")
        for name, weight in getattr(sdxl._pipe, component).named_parameters()
    }


def are_unchanged(sdxl: SDXLPipeline, original: dict[str, torch.Tensor]) -> bool:
    """Whether all weights equal `original` bit for bit."""
    return all(torch.equal(weight, original[name]) for name, weight in weights(sdxl).items())


@pytest.mark.parametrize("lora", [("hills", 3.0), ("words", 2.0)])
def test_a_lora_affects_its_job_only(with_loras: SDXLPipeline, lora: tuple[str, float]) -> None:
    """The weights are restored bit for bit; rounding errors would add up over many jobs."""
    original, plain = weights(with_loras), image_levels(with_loras, image_job())
    changed = image_levels(with_loras, image_job(loras=requested(lora)))
    assert difference(plain, changed) > MAX_DIFFERENCE
    assert are_unchanged(with_loras, original)
    assert np.array_equal(plain, image_levels(with_loras, image_job()))


def test_the_cached_empty_prompt_follows_the_text_encoder(with_loras: SDXLPipeline) -> None:
    """Compel caches the embedding of the empty prompt; it must not be used with another LoRA."""
    weighted = {"prompt": "a (red:1.3) circle", "compel_enabled": True}
    with_lora = image_job(loras=requested(("words", 2.0)), **weighted)
    first = image_levels(with_loras, with_lora)
    plain = image_levels(with_loras, image_job(**weighted))
    assert difference(first, plain) > MAX_DIFFERENCE
    assert np.array_equal(first, image_levels(with_loras, with_lora))
    assert np.array_equal(plain, image_levels(with_loras, image_job(**weighted)))


def test_several_loras_are_added_with_their_weights(with_loras: SDXLPipeline) -> None:
    """A weight of 0 has no effect."""
    plain, one, both, zero = (
        image_levels(with_loras, image_job(loras=requested(*loras)))
        for loras in ([], [("hills", 2.0)], [("hills", 2.0), ("words", 2.0)], [("hills", 0.0)])
    )
    assert difference(one, both) > MAX_DIFFERENCE
    assert difference(one, plain) > MAX_DIFFERENCE
    assert np.array_equal(plain, zero)


def test_the_weights_are_restored_after_a_cancelled_job(with_loras: SDXLPipeline) -> None:
    """Here it is cancelled in the middle of its steps."""
    original = weights(with_loras)

    def on_step(done: int, _: int) -> None:
        assert done == 0 or not are_unchanged(with_loras, original)
        if done == 1:
            raise Cancelled("enough")

    job = image_job(steps=3, loras=requested(("hills", 1.0), ("words", 1.0)))
    with pytest.raises(Cancelled):
        with_loras.generate(job, on_step=on_step)
    assert are_unchanged(with_loras, original)


def test_every_oom_fallback_applies_the_lora_once(with_loras: SDXLPipeline) -> None:
    """None adds it on top of the one before."""
    original, job = weights(with_loras), image_job(loras=requested(("hills", 2.0)))
    expected = image_levels(with_loras, job)
    with out_of_memory(with_loras._pipe.unet, first_passes(1)):
        images = image_levels(with_loras, job)
    assert difference(expected, images) <= MAX_DIFFERENCE
    assert are_unchanged(with_loras, original)


def test_the_weights_are_restored_if_adding_fails_half_way(
    with_loras: SDXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a LoRA would remain in every later image."""
    original = weights(with_loras)

    def add(scale: float) -> None:
        raise torch.OutOfMemoryError(f"CUDA out of memory at {scale}")

    monkeypatch.setattr(with_loras._model._loras._loras["words"], "add", add)
    with pytest.raises(Exception, match="Not enough memory"):
        image_levels(with_loras, image_job(loras=requested(("hills", 1.0), ("words", 1.0))))
    assert are_unchanged(with_loras, original)


def test_the_metadata_lists_the_loras(with_loras: SDXLPipeline) -> None:
    """With their weights, so that an image can be requested again."""
    result = with_loras.generate(image_job(loras=requested(("hills", 0.5))), on_step=no_progress)
    assert result.metadata["loras"] == [{"name": "hills", "weight": 0.5}]
    assert "loras" not in with_loras.generate(image_job(), on_step=no_progress).metadata


def test_an_unknown_lora_is_an_error(with_loras: SDXLPipeline) -> None:
    """Shim and worker have different settings; an image without the LoRA would hide that."""
    with pytest.raises(ModelLoadError, match="has no rivers"):
        image_levels(with_loras, image_job(loras=requested(("rivers", 1.0))))


def test_a_file_that_does_not_match_the_checkpoint_is_reported_at_start(
    sdxl_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """To the operator, not to the first caller who requests it."""
    odd = write_lora(tmp_path / "odd.safetensors", UNET_LAYER, 5, 7, seed=1)
    options = SDXLOptions(job_loras=(LoraFile("odd", odd),))
    with pytest.raises(ModelLoadError, match="another shape"):
        SDXLPipeline(sdxl_checkpoint, options=options).load()


def test_info_lists_the_available_loras(with_loras: SDXLPipeline) -> None:
    """`/model/info` shows callers what they may request."""
    assert with_loras.info()["job_loras"] == ["hills@1", "words@1"]
