"""Plans for the memory of a GPU: fallbacks, and models that stay loaded together."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.vram.footprints import kind_of
from ourvidz.vram.plan import (
    JOBS,
    TEXT_ENCODER_MIB,
    WEIGHTS_MIB,
    Demand,
    Fallback,
    JobEstimate,
    fallback,
    fitting_together,
    with_learned,
)

JOB = JobEstimate("an image", "sdxl:20", whole_mib=400, tiled_mib=200, least_mib=100)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1400, "none"), (1399, "tiled VAE"), (1199, "smaller batches"), (1099, "does not fit")],
)
def test_a_job_runs_with_the_first_fallback_that_fits(budget: int, expected: Fallback) -> None:
    """In the order in which a worker tries them."""
    assert fallback(Demand("sdxl", 1000, (JOB,)), JOB, budget) == expected


def test_a_model_in_parts_needs_no_memory_for_all_of_them_at_once() -> None:
    """Its text encoder leaves before the others work; it must fit alone."""
    wan, other = Demand("wan", 1000, (JOB,), text_encoder_mib=700), Demand("other", 100, (JOB,))
    assert fallback(wan, JOB, 700) == "none"
    assert fallback(wan, JOB, 699) == "does not fit"
    assert fitting_together([wan, other], 1499) == [("wan",), ("other",)]
    assert fitting_together([wan, other], 1500) == [("wan", "other")]


def test_models_stay_together_if_any_of_them_can_work() -> None:
    """Only one of them works at a time; one set is named once, not with each of its parts."""
    a, b, c = (Demand(name, mib, (JOB,)) for name, mib in (("a", 100), ("b", 200), ("c", 2000)))
    assert fitting_together([a, b, c], 700) == [("a", "b")]
    assert fitting_together([a, b, c], 2700) == [("a", "b", "c")]
    assert fitting_together([c], 2150) == [("c",)], "with its fallback"
    assert fitting_together([c], 100) == []


def test_what_was_measured_replaces_a_guess() -> None:
    """A job that was measured with less than its tiled estimate needs no tiles."""
    (job,) = with_learned([JOB], {"sdxl:20": 150})
    assert (job.whole_mib, job.tiled_mib, job.least_mib, job.learned) == (150, 150, 100, True)
    assert with_learned([JOB], {"wan:20": 1}) == (JOB,)


def test_the_kinds_of_the_plan_are_those_that_workers_learn() -> None:
    """Else no measurement would ever reach the plan."""
    assert JOBS["sdxl"][0].kind == kind_of("sdxl", pixels=1024 * 1024, count=1) == "sdxl:20"
    assert JOBS["wan"][0].kind == kind_of("wan", pixels=832 * 480, count=81)
    assert {job.kind for job in JOBS["qwen_base"]} == {kind_of("chat", pixels=4096, count=1)}


@pytest.mark.model
def test_the_weights_of_the_releases_are_those_of_their_structures() -> None:
    """Counted at full size on the meta device, which has no memory. The configs are the published ones."""
    import diffusers
    import torch
    import transformers

    configs = PACKAGED / "sdxl-base-config"

    def config(component: str) -> dict[str, Any]:
        return dict(json.loads((configs / component / "config.json").read_text()))

    wan = {
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "text_dim": 4096,
        "ffn_dim": 8960,
        "num_layers": 30,
    }
    umt5 = {"vocab_size": 256384, "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    qwen = {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
    }
    with torch.device("meta"):
        sdxl = (
            diffusers.UNet2DConditionModel.from_config(config("unet")),
            diffusers.AutoencoderKL.from_config(config("vae")),
            transformers.CLIPTextModel(transformers.CLIPTextConfig(**config("text_encoder"))),
            transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config("text_encoder_2"))),
        )
        t2v = diffusers.WanTransformer3DModel(**wan)
        vace = diffusers.WanVACETransformer3DModel(
            **wan, vace_layers=list(range(0, 30, 2)), vace_in_channels=96
        )
        encoder = transformers.UMT5EncoderModel(
            transformers.UMT5Config(**umt5, d_kv=64, feed_forward_proj="gated-gelu")
        )
        text = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**qwen, tie_word_embeddings=False))
        wan_vae = diffusers.AutoencoderKLWan()
    counted = {
        "sdxl": weights_mib(sdxl, 2),
        "wan": weights_mib([t2v, encoder], 2) + weights_mib([wan_vae], 4),
        "vace": weights_mib([vace], 2),
        "qwen_base": weights_mib([text], 2),
    }
    assert counted == {name: pytest.approx(WEIGHTS_MIB[name], rel=0.003) for name in counted}
    assert weights_mib([encoder], 2) == pytest.approx(TEXT_ENCODER_MIB, rel=0.003)


def weights_mib(modules: Iterable[Any], bytes_each: int) -> float:
    """Size of the weights of modules; shared ones count once."""
    weights = {id(weight): weight.numel() for module in modules for weight in module.parameters()}
    return sum(weights.values()) * bytes_each / 2**20
