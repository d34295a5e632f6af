from __future__ import annotations

from itertools import pairwise

import diffusers
import pytest
import torch

from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.prompt_encoding import PromptEmbeds, PromptEncoder
from ourvidz.prompts.encoders import read_encoders
from ourvidz.prompts.weights import read

PROMPT = "a red fox, meadow"
EQUAL = 1e-5


@pytest.fixture(scope="module")
def pipe(tiny: Checkpoint) -> diffusers.StableDiffusionXLPipeline:
    """The tiny pipeline of diffusers, with random weights."""
    return diffusers.StableDiffusionXLPipeline.from_pretrained(
        tiny.path, local_files_only=True, add_watermarker=False
    )


@pytest.fixture
def conditioner(pipe: diffusers.StableDiffusionXLPipeline) -> PromptEncoder:
    """Encodes for that pipeline."""
    return PromptEncoder(pipe)


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


def plainly(pipe: diffusers.StableDiffusionXLPipeline, prompt: str, negative: str | None) -> PromptEmbeds:
    """What diffusers itself makes of it."""
    with torch.no_grad():
        tokens, negative_tokens, pooled, negative_pooled = pipe.encode_prompt(
            prompt=prompt, negative_prompt=negative, do_classifier_free_guidance=True
        )
    return PromptEmbeds(tokens, pooled, negative_tokens, negative_pooled)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("negative", [None, "", "blue, small"])
@pytest.mark.parametrize("prompt", [PROMPT, "café!! 🦊", "it's C++ :-)", "x"])
def test_a_short_prompt_without_weights_is_what_diffusers_makes_of_it(
    conditioner: PromptEncoder,
    pipe: diffusers.StableDiffusionXLPipeline,
    prompt: str,
    negative: str | None,
    weighted: bool,
) -> None:
    """Turning weights on changes nothing where there are none: no picture changes with the road it took."""
    expected = plainly(pipe, prompt, negative)
    found = conditioner.encode(prompt, negative, weighted=weighted, guided=True)
    assert found.strategy == ("compel" if weighted else "none")
    assert far(found.prompt_embeds, expected.prompt_embeds) < EQUAL
    assert far(found.pooled_prompt_embeds, expected.pooled_prompt_embeds) < EQUAL
    assert far(found.negative_prompt_embeds, expected.negative_prompt_embeds) < EQUAL
    assert far(found.negative_pooled_prompt_embeds, expected.negative_pooled_prompt_embeds) < EQUAL


def test_an_exact_copy_has_no_words(
    conditioner: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline
) -> None:
    """The empty prompt is encoded like any other."""
    found = conditioner.encode("", weighted=False, guided=False)
    assert far(found.prompt_embeds, plainly(pipe, "", None).prompt_embeds) < EQUAL
    assert conditioner.encode("", "", weighted=True, guided=True).strategy == "compel"


def test_without_a_negative_prompt_zeros_guide(conditioner: PromptEncoder) -> None:
    """SDXL was trained with zeros for no prompt; the empty prompt is something else."""
    found = conditioner.encode("fox " * 200, None, weighted=True, guided=True)
    assert found.negative_prompt_embeds.shape == found.prompt_embeds.shape
    assert not found.negative_prompt_embeds.any()
    assert not found.negative_pooled_prompt_embeds.any()
    assert conditioner.encode(PROMPT, "", weighted=True, guided=True).negative_prompt_embeds.any()


def test_a_checkpoint_may_want_the_empty_prompt_instead_of_zeros(tiny: Checkpoint) -> None:
    """`force_zeros_for_empty_prompt` is the checkpoint's to say."""
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
        tiny.path, local_files_only=True, add_watermarker=False, force_zeros_for_empty_prompt=False
    )
    found = PromptEncoder(pipe).encode(PROMPT, None, weighted=False, guided=True)
    assert far(found.negative_prompt_embeds, plainly(pipe, PROMPT, None).negative_prompt_embeds) < EQUAL


def test_without_guidance_there_is_no_negative(conditioner: PromptEncoder) -> None:
    """Half of the UNet's work would be thrown away."""
    found = conditioner.encode(PROMPT, "blue", weighted=True, guided=False)
    assert (found.negative_prompt_embeds, found.negative_pooled_prompt_embeds) == (None, None)


def test_more_weight_moves_the_embedding_further(conditioner: PromptEncoder) -> None:
    """0.2 takes a word further away than 0.8, 1.8 further than 1.2; Compel alone would ignore all four."""
    plain = conditioner.encode(PROMPT, weighted=True, guided=False).prompt_embeds

    def moved(weight: float) -> float:
        prompt = PROMPT.replace("red", f"(red:{weight})")
        found = conditioner.encode(prompt, weighted=True, guided=False)
        assert found.strategy == "compel"
        return float((found.prompt_embeds - plain).norm())

    up = [moved(weight) for weight in (1, 1.2, 1.5, 1.8, 2)]
    down = [moved(weight) for weight in (1, 0.8, 0.5, 0.2, 0)]
    for distances in (up, down):
        assert distances[0] == 0
        assert all(near * 1.05 < further for near, further in pairwise(distances))


def test_weights_act_on_their_own_words(conditioner: PromptEncoder) -> None:
    """A weight above 1 scales the words in its brackets and leaves every other position alone."""
    plain = conditioner.encode("fox hill", weighted=True, guided=False).prompt_embeds
    found = conditioner.encode("fox (hill:1.5)", weighted=True, guided=False).prompt_embeds
    changed = ((found - plain).abs().amax(dim=-1)[0] > EQUAL).nonzero().flatten().tolist()
    assert changed == [4, 5, 6, 7], "the beginning, three letters, then the four of the hill"


def test_the_pooled_embedding_is_of_the_clean_text(conditioner: PromptEncoder) -> None:
    """Brackets and numbers are no part of the picture."""
    clean = conditioner.encode("a red fox, calm", weighted=False, guided=False)
    found = conditioner.encode("a (red:1.5) fox", weights="(calm:1.2)", weighted=True, guided=False)
    assert far(found.pooled_prompt_embeds, clean.pooled_prompt_embeds) < EQUAL
    literally = conditioner.encode("a (red:1.5) fox", weighted=False, guided=False)
    assert far(found.pooled_prompt_embeds, literally.pooled_prompt_embeds) > 0.01


def test_weights_stand_behind_the_prompt(conditioner: PromptEncoder) -> None:
    """`compel_weights` is the same as writing it into the prompt."""
    apart = conditioner.encode("a (red:1.2) fox", weights="(calm:1.3) sea", weighted=True, guided=False)
    joined = conditioner.encode("a (red:1.2) fox, (calm:1.3) sea", weighted=True, guided=False)
    assert far(apart.prompt_embeds, joined.prompt_embeds) < EQUAL


def test_without_weights_brackets_are_text(
    conditioner: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline
) -> None:
    """Workers run exactly what they are given."""
    found = conditioner.encode("a (red:1.5) fox", weights="(calm:1.3)", weighted=False, guided=True)
    assert (found.strategy, found.reason, found.final_prompt_type) == ("none", None, "string")
    assert far(found.prompt_embeds, plainly(pipe, "a (red:1.5) fox", None).prompt_embeds) < EQUAL


@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_is_cut_off(conditioner: PromptEncoder, weighted: bool) -> None:
    """200 tokens are three chunks of 77, and the last word still changes what the UNet reads."""
    one, other = (
        conditioner.encode("a " * 199 + last, weighted=weighted, guided=False).prompt_embeds
        for last in ("b", "c")
    )
    assert one.shape == (1, 231, 64)
    assert far(one[:, :154], other[:, :154]) < EQUAL
    assert far(one[:, 154:], other[:, 154:]) > 0.01


def test_a_break_begins_a_chunk(conditioner: PromptEncoder) -> None:
    """Two halves of a prompt are encoded apart, each padded to 77 tokens."""
    found = conditioner.encode("a fox BREAK a hill", weighted=True, guided=False).prompt_embeds
    halves = [
        conditioner.encode(half, weighted=True, guided=False).prompt_embeds for half in ("a fox ", " a hill")
    ]
    assert far(found, torch.cat(halves, dim=1)) < EQUAL


@pytest.mark.parametrize(("prompt", "negative"), [("a fox", "b " * 100), ("a " * 100, "a fox")])
def test_the_shorter_prompt_is_padded_with_the_empty_one(
    conditioner: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline, prompt: str, negative: str
) -> None:
    """Both must be of one length for guidance, and padding must mean nothing."""
    found = conditioner.encode(prompt, negative, weighted=True, guided=True)
    assert found.prompt_embeds.shape == found.negative_prompt_embeds.shape == (1, 154, 64)
    short = found.prompt_embeds if len(prompt) < len(negative) else found.negative_prompt_embeds
    assert far(short[:, :77], plainly(pipe, "a fox", None).prompt_embeds) < EQUAL
    assert far(short[:, 77:], empty(pipe)) < EQUAL


def empty(pipe: diffusers.StableDiffusionXLPipeline) -> torch.Tensor:
    return plainly(pipe, "", None).prompt_embeds


def test_tokenizers_that_disagree_are_padded_to_one_length(
    conditioner: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline, tiny: Checkpoint
) -> None:
    """The second tokenizer knows an exclamation mark as padding, so it cuts chunks elsewhere."""
    prompt = "a " * 74 + "!c " + "a " * 74
    chunks = read_encoders(tiny.path).chunks(read(prompt, weighted=True).prompt)
    assert {name: len(found) for name, found in chunks.items()} == {"tokenizer": 2, "tokenizer_2": 3}
    found = conditioner.encode(prompt, weighted=True, guided=False)
    assert found.strategy == "compel"
    assert found.prompt_embeds.shape == (1, 231, 64)
    width = pipe.text_encoder.config.hidden_size
    assert far(found.prompt_embeds[:, 154:, :width], empty(pipe)[:, :, :width]) < EQUAL
    assert far(found.prompt_embeds[:, 154:, width:], empty(pipe)[:, :, width:]) > 0.01


@pytest.mark.parametrize(
    "prompt",
    [
        "a fox",
        "a (red:1.5) fox BREAK [hill]",
        "(sea:0.3), " * 60,
        "🦊" * 120,
        "<|endoftext|> (x:0.5) !!",
        "(!:0.5)",
    ],
)
def test_the_shim_foretells_the_shapes(conditioner: PromptEncoder, tiny: Checkpoint, prompt: str) -> None:
    """What /prompts/inspect says without torch is what the worker makes."""
    found = conditioner.encode(prompt, weighted=True, guided=False)
    shapes = read_encoders(tiny.path).shapes([read(prompt, weighted=True).prompt])
    assert found.strategy == "compel"
    assert tuple(found.prompt_embeds.shape) == shapes.prompt_embeds
    assert tuple(found.pooled_prompt_embeds.shape) == shapes.pooled_prompt_embeds
    assert found.prompt_embeds.isfinite().all()


def test_weights_that_cannot_be_used_fall_back_with_the_reason(
    conditioner: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline
) -> None:
    """The job completes with its plain prompt, and the caller learns why."""
    found = conditioner.encode(PROMPT, None, weights="(x:abc)", weighted=True, guided=True)
    assert (found.strategy, found.final_prompt_type) == ("fallback", "string")
    assert "no readable weight" in str(found.reason)
    assert far(found.prompt_embeds, plainly(pipe, PROMPT, None).prompt_embeds) < EQUAL


def test_a_failure_inside_compel_falls_back_to_diffusers(
    conditioner: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library's bug must cost the weights, not the job."""

    def fail(**_: object) -> None:
        raise RuntimeError("couldn't find start of token sequence for 'secret words'")

    provider = conditioner._encoders[0]._provider
    monkeypatch.setattr(provider, "get_embeddings_for_weighted_prompt_fragments", fail)
    found = conditioner.encode("a (red:1.5) fox", "blue", weighted=True, guided=True)
    assert (found.strategy, found.final_prompt_type) == ("fallback", "string")
    assert "RuntimeError" in str(found.reason)
    assert "secret" not in str(found.reason), "reasons are logged; prompts are not"
    assert far(found.prompt_embeds, plainly(pipe, "a (red:1.5) fox", "blue").prompt_embeds) < EQUAL


def test_running_out_of_memory_is_no_reason_to_fall_back(
    conditioner: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ladder frees memory and tries again; a picture without its weights would be the wrong one."""

    def fail(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    provider = conditioner._encoders[0]._provider
    monkeypatch.setattr(provider, "get_embeddings_for_weighted_prompt_fragments", fail)
    with pytest.raises(torch.OutOfMemoryError):
        conditioner.encode(PROMPT, weighted=True, guided=True)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_short_prompt_costs_one_pass_of_each_encoder(
    conditioner: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline, weighted: bool
) -> None:
    """The larger encoder takes as long as a denoising step: asking it twice for the same words is waste."""
    passes: list[str] = []
    conditioner.encode(PROMPT, "blue", weighted=weighted, guided=True)
    hooks = [
        module.register_forward_hook(lambda *_, name=name: passes.append(name))
        for name, module in (("one", pipe.text_encoder), ("two", pipe.text_encoder_2))
    ]
    conditioner.encode(PROMPT, "blue", weighted=weighted, guided=True)
    for hook in hooks:
        hook.remove()
    assert sorted(passes) == ["one", "one", "two", "two"], "the prompt and the negative, once each"


def test_nothing_is_kept_from_one_job_to_the_next(conditioner: PromptEncoder) -> None:
    """A warm worker runs for weeks; every prompt's tensors would fill the GPU."""
    conditioner.encode("a (red:0.5) fox", "blue", weighted=True, guided=True)
    assert all(not encoder._model._outputs for encoder in conditioner._encoders)


def test_a_batch_repeats_its_words(conditioner: PromptEncoder) -> None:
    """All pictures of a batch are of one prompt."""
    named = conditioner.encode(PROMPT, "blue", weighted=True, guided=True).repeat(3)
    assert {name: value.shape[0] for name, value in named.items()} == dict.fromkeys(named, 3)
    unguided = conditioner.encode(PROMPT, weighted=True, guided=False).repeat(3)
    assert unguided["negative_prompt_embeds"] is None


def test_weights_change_the_picture(
    conditioner: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline
) -> None:
    """The pipeline takes what is made here, and a weight reaches the latents."""
    pipe.set_progress_bar_config(disable=True)

    def latents(prompt: str) -> torch.Tensor:
        found = conditioner.encode(prompt, "blue", weighted=True, guided=True)
        return pipe(
            **found.repeat(1),
            width=64,
            height=64,
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(1),
        ).images

    assert far(latents("a red fox"), latents("a (red:1.8) fox")) > 1e-3
    assert latents("a (red:1.8) fox BREAK a hill").shape == (1, 4, 8, 8)


def test_half_precision_stays_half(tiny: Checkpoint) -> None:
    """Workers on a GPU load half precision: Compel computes weights in single and must hand back half."""
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
        tiny.path, local_files_only=True, add_watermarker=False, dtype=torch.float16
    )
    found = PromptEncoder(pipe).encode("a (red:1.5) [fox]", "blue", weighted=True, guided=True)
    tensors = (
        found.prompt_embeds,
        found.pooled_prompt_embeds,
        found.negative_prompt_embeds,
        found.negative_pooled_prompt_embeds,
    )
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert found.strategy == "compel"
