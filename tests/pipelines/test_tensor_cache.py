"""The cache of encoded prompts and references: what is found, what is not, and that results stay the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ourvidz.jobs.job import JobLora
from ourvidz.pipelines.base import ReferenceImages
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.lora import LoraFile
from ourvidz.pipelines.sdxl.options import SDXLOptions
from ourvidz.pipelines.sdxl.pipeline import SDXLPipeline
from ourvidz.pipelines.tensor_cache import CacheCounts, TensorCache, cache_key
from ourvidz.pipelines.wan.pipeline import WanPipeline
from tests.factories import image_job, video_job
from tests.pipelines.helpers import clip_levels, image_levels
from tests.pipelines.sdxl.test_job_loras import TEXT_ENCODER_LAYER, UNET_LAYER, write_lora

CPU = torch.device("cpu")
MIB = 1 << 20


def ones(mib: float) -> tuple[torch.Tensor]:
    """One tensor of this size."""
    return (torch.ones(int(mib * MIB) // 4),)


def test_the_least_recently_used_entries_leave_first() -> None:
    """The cache is bounded by bytes: a long prompt counts for more than a short one."""
    cache = TensorCache(3)
    for key in ("a", "b", "c"):
        cache.put(key, ones(1))
    assert cache.get("a", CPU) is not None
    cache.put("d", ones(1.5))
    assert [key for key in "abcd" if cache.get(key, CPU)] == ["a", "d"]
    assert cache.info() | {"hits": 0, "misses": 0} == {
        "entries": 2,
        "mib": 3,
        "capacity_mib": 3,
        "hits": 0,
        "misses": 0,
    }


def test_an_entry_larger_than_the_cache_is_not_kept() -> None:
    """It would only push everything else out."""
    cache = TensorCache(1)
    cache.put("small", ones(0.5))
    cache.put("large", ones(2))
    assert cache.get("large", CPU) is None
    assert cache.get("small", CPU) is not None


def test_entries_are_copies_in_both_directions() -> None:
    """A stage may change its tensors in place; the next job must not see that."""
    cache, tensors = TensorCache(1), ones(0.1)
    cache.put("key", tensors)
    tensors[0].zero_()
    first = cache.get("key", CPU)
    assert first is not None
    assert first[0] is not None
    first[0].zero_()
    again = cache.get("key", CPU)
    assert again is not None
    assert again[0] is not None
    assert bool((again[0] == 1).all())


def test_hits_and_misses_are_counted() -> None:
    """Operators judge by them whether the cache is worth its memory."""
    cache = TensorCache(1)
    assert cache.get("key", CPU) is None
    cache.put("key", ones(0.1))
    before = cache.counts
    assert cache.get("key", CPU) is not None
    assert cache.counts == CacheCounts(hits=1, misses=1)
    assert cache.counts.since(before) == CacheCounts(hits=1, misses=0)


def test_a_key_contains_no_prompt() -> None:
    """What people wrote is not kept longer than their job."""
    assert "fox" not in cache_key("a fox", torch.float32)
    assert cache_key("a", "bc") != cache_key("ab", "c")


@contextmanager
def passes(*modules: torch.nn.Module) -> Iterator[list[str]]:
    """Records the class of every module that runs."""
    seen: list[str] = []

    def note(module: torch.nn.Module, *_: Any) -> None:
        seen.append(type(module).__name__)

    handles = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def text_encoders(sdxl: SDXLPipeline) -> tuple[torch.nn.Module, ...]:
    return sdxl._pipe.text_encoder, sdxl._pipe.text_encoder_2


@pytest.fixture(scope="module")
def cached_sdxl(sdxl_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> SDXLPipeline:
    """A loaded pipeline with a cache, whose jobs may request `hills` (UNet) and `words` (a text encoder)."""
    folder = tmp_path_factory.mktemp("loras")
    plain = SDXLPipeline(sdxl_checkpoint)
    plain.load()
    unet = plain._pipe.unet.get_submodule(UNET_LAYER.removeprefix("unet.")).weight
    modules = plain._pipe.text_encoder.named_modules()
    [query] = [module for name, module in modules if name.endswith("layers.0.self_attn.q_proj")]
    hills = write_lora(folder / "hills.safetensors", UNET_LAYER, *unet.shape, seed=3)
    words = write_lora(folder / "words.safetensors", TEXT_ENCODER_LAYER, *query.weight.shape, seed=4)
    options = SDXLOptions(job_loras=(LoraFile("hills", hills), LoraFile("words", words)))
    pipeline = SDXLPipeline(sdxl_checkpoint, cap=128, options=options, cache=TensorCache(8))
    pipeline.load()
    return pipeline


SDXL_JOB = image_job(prompt="a (red:1.3) fox", negative_prompt="blue", compel_enabled=True, steps=2)


def lora(name: str, weight: float) -> tuple[JobLora, ...]:
    return (JobLora(name=name, weight=weight),)


def test_an_equal_prompt_makes_no_encoder_call_and_the_same_image(
    cached_sdxl: SDXLPipeline, sdxl: SDXLPipeline
) -> None:
    """Bit for bit, also compared with a pipeline that has no cache."""
    first = image_levels(cached_sdxl, SDXL_JOB)
    with passes(*text_encoders(cached_sdxl)) as calls:
        second = image_levels(cached_sdxl, SDXL_JOB)
    assert calls == []
    assert (first == second).all()
    assert (first == image_levels(sdxl, SDXL_JOB)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a (red:1.4) fox"},
        {"prompt": "a (red:1.3) hill"},
        {"negative_prompt": "green"},
        {"negative_prompt": None},
        {"compel_enabled": False},
        {"compel_weights": "(hill:1.2)"},
        {"guidance_scale": 1.0},
        {"loras": lora("words", 1.0)},
    ],
)
def test_another_text_weight_or_text_encoder_is_a_miss(
    cached_sdxl: SDXLPipeline, sdxl: SDXLPipeline, change: dict[str, Any]
) -> None:
    """Every part of the key counts, and the result is that of a pipeline without a cache."""
    image_levels(cached_sdxl, SDXL_JOB)
    job = SDXL_JOB.model_copy(update=change)
    with passes(*text_encoders(cached_sdxl)) as calls:
        images = image_levels(cached_sdxl, job)
    assert calls != []
    if not job.loras:
        assert (images == image_levels(sdxl, job)).all()


@pytest.mark.parametrize(("name", "weight", "is_hit"), [("words", 0.5, False), ("hills", 2.0, True)])
def test_a_lora_counts_where_it_changes_a_text_encoder(
    cached_sdxl: SDXLPipeline, name: str, weight: float, is_hit: bool
) -> None:
    """The weight of the LoRA too; one for the UNet alone leaves the embeddings as they are."""
    for other in (SDXL_JOB, SDXL_JOB.model_copy(update={"loras": lora("words", 0.75)})):
        image_levels(cached_sdxl, other)
    job = SDXL_JOB.model_copy(update={"loras": lora(name, weight)})
    with passes(*text_encoders(cached_sdxl)) as calls:
        first = image_levels(cached_sdxl, job)
    assert (calls == []) == is_hit
    with passes(*text_encoders(cached_sdxl)) as calls:
        second = image_levels(cached_sdxl, job)
    assert calls == []
    assert (first == second).all()


def test_an_unloaded_model_finds_its_prompts_again_and_a_changed_one_does_not(
    sdxl_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Entries are found by the content of the checkpoint, so a model that was replaced meanwhile starts
    with none."""
    folder = shutil.copytree(sdxl_checkpoint.path, tmp_path / "model")
    pipeline = SDXLPipeline(Checkpoint(folder, "folder"), cap=128, cache=TensorCache(8))
    first = image_levels(pipeline, SDXL_JOB)
    pipeline.unload()
    pipeline.load()
    with passes(*text_encoders(pipeline)) as calls:
        assert (image_levels(pipeline, SDXL_JOB) == first).all()
    assert calls == []
    pipeline.unload()
    file = folder / "text_encoder" / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    pipeline.load()
    with passes(*text_encoders(pipeline)) as calls:
        changed = image_levels(pipeline, SDXL_JOB)
    assert calls != []
    assert (changed != first).any()


def test_two_dtypes_share_no_embeddings(sdxl_checkpoint: Checkpoint) -> None:
    """A worker that is started again with another dtype has other embeddings; here both use one cache."""
    cache = TensorCache(8)
    for dtype in ("float32", "bfloat16"):
        options = SDXLOptions(dtype=dtype, previews=False)
        pipeline = SDXLPipeline(sdxl_checkpoint, cap=64, options=options, cache=cache)
        image_levels(pipeline, SDXL_JOB)
    assert cache.counts == CacheCounts(hits=0, misses=2)


def gradient(width: int, height: int, *, blue: int = 0) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (ramp, ramp.rotate(180), Image.new("L", (width, height), blue)))


def test_an_equal_reference_is_encoded_once(cached_sdxl: SDXLPipeline, sdxl: SDXLPipeline) -> None:
    """By its pixels: one with other pixels is encoded, and so is the same one at another size."""
    job = SDXL_JOB.model_copy(update={"reference": "x", "denoise_strength": 0.6})
    vae = cached_sdxl._pipe.vae.encoder
    image = gradient(64, 64)
    first = image_levels(cached_sdxl, job, image)
    with passes(vae) as calls:
        second = image_levels(cached_sdxl, job, image.copy())
    assert calls == []
    assert (first == second).all()
    assert (first == image_levels(sdxl, job, image)).all()
    for changed, reference in [
        (job, gradient(64, 64, blue=9)),
        (job.model_copy(update={"width": 96}), image),
    ]:
        with passes(vae) as calls:
            image_levels(cached_sdxl, changed, reference)
        assert calls != []


@pytest.fixture(scope="module")
def cached_wan(wan_checkpoint: Checkpoint) -> WanPipeline:
    """A loaded pipeline with a cache."""
    pipeline = WanPipeline(wan_checkpoint, cap=128, cache=TensorCache(32))
    pipeline.load()
    return pipeline


WAN_JOB = video_job(prompt="a red star", negative_prompt="blue", frames=5, steps=2)


def test_an_equal_prompt_makes_no_encoder_call_and_the_same_clip(
    cached_wan: WanPipeline, wan: WanPipeline
) -> None:
    """Each text for itself: jobs with one negative prompt encode it once."""
    first = clip_levels(cached_wan, WAN_JOB)
    encoder = cached_wan.components.pipe.text_encoder
    with passes(encoder) as calls:
        second = clip_levels(cached_wan, WAN_JOB)
    assert calls == []
    assert (first == second).all()
    assert (first == clip_levels(wan, WAN_JOB)).all()
    with passes(encoder) as calls:
        clip_levels(cached_wan, WAN_JOB.model_copy(update={"prompt": "a green star"}))
    assert len(calls) == 1


def test_a_hit_leaves_the_text_encoder_where_it_is(
    cached_wan: WanPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moving eleven gigabytes to the device takes longer than encoding."""
    clip_levels(cached_wan, WAN_JOB)
    used: list[str] = []
    in_use = cached_wan.components.in_use

    def note(component: Any, plan: Any = None, **options: Any) -> Any:
        used.append(component)
        return in_use(component, plan, **options)

    monkeypatch.setattr(cached_wan.components, "in_use", note)
    clip_levels(cached_wan, WAN_JOB)
    assert "text_encoder" not in used
    assert "transformer" in used


def test_an_equal_reference_of_a_clip_is_encoded_once(cached_wan: WanPipeline, wan: WanPipeline) -> None:
    """Also by another seed and prompt, as people try variants of one picture."""
    job = WAN_JOB.model_copy(update={"reference_mode": "start", "start_reference": "x"})
    references = ReferenceImages(start=gradient(64, 64))
    first = clip_levels(cached_wan, job, references=references)
    vae = cached_wan.components.pipe.vae.encoder
    other = job.model_copy(update={"seed": job.seed + 1})
    with passes(vae) as calls:
        second = clip_levels(cached_wan, job, references=references)
        clip_levels(cached_wan, other, references=references)
    assert calls == []
    assert (first == second).all()
    assert (first == clip_levels(wan, job, references=references)).all()
    with passes(vae) as calls:
        clip_levels(cached_wan, job, references=ReferenceImages(start=gradient(64, 64, blue=9)))
    assert calls != []


def test_the_result_counts_hits_and_misses(sdxl_checkpoint: Checkpoint) -> None:
    """The callback says whether a job was spared the encoding."""
    pipeline = SDXLPipeline(sdxl_checkpoint, cap=128, cache=TensorCache(8))
    results = [pipeline.generate(SDXL_JOB, on_step=lambda *_: None) for _ in range(2)]
    counts = [result.metadata["embedding_cache"] for result in results]
    assert counts == [{"hits": 0, "misses": 1}, {"hits": 1, "misses": 0}]
    assert pipeline.info()["embedding_cache"]["hits"] == 1
