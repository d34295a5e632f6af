"""Prompt embeddings of SDXL: weights, long prompts, negative prompts, and the fallback to plain text."""

from __future__ import annotations

from itertools import pairwise

import diffusers
import pytest
import torch

from ourvidz.errors import PolicyViolation
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.sdxl.prompt_encoding import PromptEmbeds, PromptEncoder
from ourvidz.prompts.encoder_texts import checked_by
from ourvidz.prompts.encoders import read_encoders
from ourvidz.prompts.weights import parse_prompt

PROMPT = "a red fox, meadow"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pipe(sdxl_checkpoint: Checkpoint) -> diffusers.StableDiffusionXLPipeline:
    """The diffusers pipeline with random weights."""
    return diffusers.StableDiffusionXLPipeline.from_pretrained(
        sdxl_checkpoint.path, local_files_only=True, add_watermarker=False
    )


@pytest.fixture
def encoder(pipe: diffusers.StableDiffusionXLPipeline) -> PromptEncoder:
    return PromptEncoder(pipe)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference between two tensors of equal shape."""
    assert one.shape == other.shape
    return float((one - other).abs().max())


def by_diffusers(
    pipe: diffusers.StableDiffusionXLPipeline, prompt: str, negative_prompt: str | None = None
) -> PromptEmbeds:
    """The embeddings that diffusers itself computes."""
    with torch.no_grad():
        embeds, negative_embeds, pooled, negative_pooled = pipe.encode_prompt(
            prompt=prompt, negative_prompt=negative_prompt, do_classifier_free_guidance=True
        )
    return PromptEmbeds(embeds, pooled, negative_embeds, negative_pooled)


def embed(encoder: PromptEncoder, prompt: str) -> torch.Tensor:
    """The embeddings of a weighted prompt without guidance."""
    return encoder.encode(prompt, weighted=True, guided=False).prompt_embeds


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("negative_prompt", [None, "", "blue, small"])
@pytest.mark.parametrize("prompt", [PROMPT, "café!! 🦊", "it's C++ :-)", "x"])
def test_a_short_prompt_without_weights_is_encoded_as_by_diffusers(
    encoder: PromptEncoder,
    pipe: diffusers.StableDiffusionXLPipeline,
    prompt: str,
    negative_prompt: str | None,
    weighted: bool,
) -> None:
    """Enabling weights changes nothing if the prompt has none."""
    expected = by_diffusers(pipe, prompt, negative_prompt)
    embeds = encoder.encode(prompt, negative_prompt, weighted=weighted, guided=True)
    assert embeds.strategy == ("compel" if weighted else "none")
    assert distance(embeds.prompt_embeds, expected.prompt_embeds) < TOLERANCE
    assert distance(embeds.pooled_prompt_embeds, expected.pooled_prompt_embeds) < TOLERANCE
    assert distance(embeds.negative_prompt_embeds, expected.negative_prompt_embeds) < TOLERANCE
    assert distance(embeds.negative_pooled_prompt_embeds, expected.negative_pooled_prompt_embeds) < TOLERANCE


def test_the_empty_prompt_is_encoded(
    encoder: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline
) -> None:
    """Exact copies have no prompt."""
    embeds = encoder.encode("", weighted=False, guided=False)
    assert distance(embeds.prompt_embeds, by_diffusers(pipe, "").prompt_embeds) < TOLERANCE
    assert encoder.encode("", "", weighted=True, guided=True).strategy == "compel"


def test_without_a_negative_prompt_the_negative_embeddings_are_zeros(encoder: PromptEncoder) -> None:
    """SDXL was trained with zeros for no prompt; the empty prompt has other embeddings."""
    embeds = encoder.encode("fox " * 200, None, weighted=True, guided=True)
    assert embeds.negative_prompt_embeds.shape == embeds.prompt_embeds.shape
    assert not embeds.negative_prompt_embeds.any()
    assert not embeds.negative_pooled_prompt_embeds.any()
    assert encoder.encode(PROMPT, "", weighted=True, guided=True).negative_prompt_embeds.any()


def test_a_checkpoint_can_use_the_empty_prompt_instead_of_zeros(sdxl_checkpoint: Checkpoint) -> None:
    """`force_zeros_for_empty_prompt` of its config decides."""
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
        sdxl_checkpoint.path,
        local_files_only=True,
        add_watermarker=False,
        force_zeros_for_empty_prompt=False,
    )
    embeds = PromptEncoder(pipe).encode(PROMPT, None, weighted=False, guided=True)
    expected = by_diffusers(pipe, PROMPT)
    assert distance(embeds.negative_prompt_embeds, expected.negative_prompt_embeds) < TOLERANCE


def test_without_guidance_there_are_no_negative_embeddings(encoder: PromptEncoder) -> None:
    """Half of the UNet's work would be thrown away."""
    embeds = encoder.encode(PROMPT, "blue", weighted=True, guided=False)
    assert (embeds.negative_prompt_embeds, embeds.negative_pooled_prompt_embeds) == (None, None)


def test_a_weight_further_from_1_moves_the_embedding_further(encoder: PromptEncoder) -> None:
    """Both up and down. Compel alone would ignore A1111 weights."""
    plain = embed(encoder, PROMPT)

    def moved(weight: float) -> float:
        embeds = encoder.encode(PROMPT.replace("red", f"(red:{weight})"), weighted=True, guided=False)
        assert embeds.strategy == "compel"
        return float((embeds.prompt_embeds - plain).norm())

    up = [moved(weight) for weight in (1, 1.2, 1.5, 1.8, 2)]
    down = [moved(weight) for weight in (1, 0.8, 0.5, 0.2, 0)]
    for distances in (up, down):
        assert distances[0] == 0
        assert all(nearer * 1.05 < further for nearer, further in pairwise(distances))


def test_a_weight_above_1_affects_the_tokens_in_its_brackets_only(encoder: PromptEncoder) -> None:
    """All other positions keep their embeddings."""
    difference = (embed(encoder, "fox (hill:1.5)") - embed(encoder, "fox hill")).abs().amax(dim=-1)[0]
    changed = (difference > TOLERANCE).nonzero().flatten().tolist()
    assert changed == [4, 5, 6, 7], "after the start token and three letters, the four of the hill"


def test_the_pooled_embedding_ignores_the_syntax(encoder: PromptEncoder) -> None:
    """Brackets and numbers are not part of the text."""
    clean = encoder.encode("a red fox, calm", weighted=False, guided=False)
    embeds = encoder.encode("a (red:1.5) fox", weights="(calm:1.2)", weighted=True, guided=False)
    assert distance(embeds.pooled_prompt_embeds, clean.pooled_prompt_embeds) < TOLERANCE
    literal = encoder.encode("a (red:1.5) fox", weighted=False, guided=False)
    assert distance(embeds.pooled_prompt_embeds, literal.pooled_prompt_embeds) > 0.01


def test_the_weights_argument_is_appended_to_the_prompt(encoder: PromptEncoder) -> None:
    """`compel_weights` has the same effect as writing it into the prompt."""
    separate = encoder.encode("a (red:1.2) fox", weights="(calm:1.3) sea", weighted=True, guided=False)
    joined = embed(encoder, "a (red:1.2) fox, (calm:1.3) sea")
    assert distance(separate.prompt_embeds, joined) < TOLERANCE


def test_without_weighting_brackets_are_text(
    encoder: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline
) -> None:
    """Workers use prompts exactly as they are."""
    embeds = encoder.encode("a (red:1.5) fox", weights="(calm:1.3)", weighted=False, guided=True)
    assert (embeds.strategy, embeds.reason, embeds.final_prompt_type) == ("none", None, "string")
    expected = by_diffusers(pipe, "a (red:1.5) fox")
    assert distance(embeds.prompt_embeds, expected.prompt_embeds) < TOLERANCE


@pytest.mark.parametrize("weighted", [False, True])
def test_a_long_prompt_is_not_truncated(encoder: PromptEncoder, weighted: bool) -> None:
    """200 tokens are three chunks of 77, and the last word changes the last chunk."""
    one, other = (
        encoder.encode("a " * 199 + last, weighted=weighted, guided=False).prompt_embeds
        for last in ("b", "c")
    )
    assert one.shape == (1, 231, 64)
    assert distance(one[:, :154], other[:, :154]) < TOLERANCE
    assert distance(one[:, 154:], other[:, 154:]) > 0.01


def test_break_starts_a_chunk(encoder: PromptEncoder) -> None:
    """The two halves of a prompt are encoded separately, each padded to 77 tokens."""
    halves = [embed(encoder, half) for half in ("a fox ", " a hill")]
    assert distance(embed(encoder, "a fox BREAK a hill"), torch.cat(halves, dim=1)) < TOLERANCE


@pytest.mark.parametrize(("prompt", "negative_prompt"), [("a fox", "b " * 100), ("a " * 100, "a fox")])
def test_the_shorter_prompt_is_padded_with_the_empty_prompt(
    encoder: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline, prompt: str, negative_prompt: str
) -> None:
    """Guidance needs both at one length, and the padding must have no content."""
    embeds = encoder.encode(prompt, negative_prompt, weighted=True, guided=True)
    assert embeds.prompt_embeds.shape == embeds.negative_prompt_embeds.shape == (1, 154, 64)
    is_shorter = len(prompt) < len(negative_prompt)
    shorter = embeds.prompt_embeds if is_shorter else embeds.negative_prompt_embeds
    assert distance(shorter[:, :77], by_diffusers(pipe, "a fox").prompt_embeds) < TOLERANCE
    assert distance(shorter[:, 77:], by_diffusers(pipe, "").prompt_embeds) < TOLERANCE


def test_tokenizers_with_different_numbers_of_chunks_are_padded_to_one_length(
    encoder: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline, sdxl_checkpoint: Checkpoint
) -> None:
    """The second tokenizer pads with an exclamation mark, so its chunks are cut at other places."""
    prompt = "a " * 74 + "!c " + "a " * 74
    chunks = read_encoders(sdxl_checkpoint.path).chunks(parse_prompt(prompt, weighted=True).prompt)
    assert {name: len(parts) for name, parts in chunks.items()} == {"tokenizer": 2, "tokenizer_2": 3}
    embeds = encoder.encode(prompt, weighted=True, guided=False)
    assert embeds.strategy == "compel"
    assert embeds.prompt_embeds.shape == (1, 231, 64)
    width, empty = pipe.text_encoder.config.hidden_size, by_diffusers(pipe, "").prompt_embeds
    assert distance(embeds.prompt_embeds[:, 154:, :width], empty[:, :, :width]) < TOLERANCE
    assert distance(embeds.prompt_embeds[:, 154:, width:], empty[:, :, width:]) > 0.01


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
def test_the_shim_predicts_the_shapes(
    encoder: PromptEncoder, sdxl_checkpoint: Checkpoint, prompt: str
) -> None:
    """`/prompts/inspect` computes without torch what the worker gets."""
    embeds = encoder.encode(prompt, weighted=True, guided=False)
    shapes = read_encoders(sdxl_checkpoint.path).shapes([parse_prompt(prompt, weighted=True).prompt])
    assert embeds.strategy == "compel"
    assert tuple(embeds.prompt_embeds.shape) == shapes.prompt_embeds
    assert tuple(embeds.pooled_prompt_embeds.shape) == shapes.pooled_prompt_embeds
    assert embeds.prompt_embeds.isfinite().all()


def test_malformed_weights_fall_back_to_the_plain_prompt(
    encoder: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline
) -> None:
    """The job completes, and the caller is told the reason."""
    embeds = encoder.encode(PROMPT, None, weights="(x:abc)", weighted=True, guided=True)
    assert (embeds.strategy, embeds.final_prompt_type) == ("fallback", "string")
    assert "no readable weight" in str(embeds.reason)
    assert distance(embeds.prompt_embeds, by_diffusers(pipe, PROMPT).prompt_embeds) < TOLERANCE


def fail_inside_compel(encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(**_: object) -> None:
        raise error

    provider = encoder._encoders[0]._provider
    monkeypatch.setattr(provider, "get_embeddings_for_weighted_prompt_fragments", fail)


def test_an_error_inside_compel_falls_back_to_diffusers(
    encoder: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of the library costs the weights, not the job. The reason does not quote the prompt: it is
    logged."""
    error = RuntimeError("couldn't find start of token sequence for 'secret words'")
    fail_inside_compel(encoder, monkeypatch, error)
    embeds = encoder.encode("a (red:1.5) fox", "blue", weighted=True, guided=True)
    assert (embeds.strategy, embeds.final_prompt_type) == ("fallback", "string")
    assert "RuntimeError" in str(embeds.reason)
    assert "secret" not in str(embeds.reason)
    expected = by_diffusers(pipe, "a (red:1.5) fox", "blue")
    assert distance(embeds.prompt_embeds, expected.prompt_embeds) < TOLERANCE


def test_out_of_memory_does_not_fall_back_to_plain_text(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The OOM fallbacks free memory and try again; an image without its weights would be the wrong one."""
    fail_inside_compel(encoder, monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(PROMPT, weighted=True, guided=True)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_short_prompt_takes_one_pass_of_each_text_encoder(
    encoder: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline, weighted: bool
) -> None:
    """A pass of the larger one takes as long as a denoising step. Two prompts are two passes."""
    passes: list[str] = []
    encoder.encode(PROMPT, "blue", weighted=weighted, guided=True)
    hooks = [
        module.register_forward_hook(lambda *_, name=name: passes.append(name))
        for name, module in (("one", pipe.text_encoder), ("two", pipe.text_encoder_2))
    ]
    encoder.encode(PROMPT, "blue", weighted=weighted, guided=True)
    for hook in hooks:
        hook.remove()
    assert sorted(passes) == ["one", "one", "two", "two"]


def test_no_encoder_output_is_cached_beyond_a_job(encoder: PromptEncoder) -> None:
    """A worker runs for weeks: the tensors of all prompts would fill the GPU."""
    encoder.encode("a (red:0.5) fox", "blue", weighted=True, guided=True)
    assert all(not text_encoder._model._outputs for text_encoder in encoder._encoders)


def test_repeat_gives_one_row_per_image(encoder: PromptEncoder) -> None:
    """All images of a batch have one prompt."""
    tensors = encoder.encode(PROMPT, "blue", weighted=True, guided=True).repeat(3)
    assert {name: tensor.shape[0] for name, tensor in tensors.items()} == dict.fromkeys(tensors, 3)
    unguided = encoder.encode(PROMPT, weighted=True, guided=False).repeat(3)
    assert unguided["negative_prompt_embeds"] is None


def test_weights_change_the_latents(
    encoder: PromptEncoder, pipe: diffusers.StableDiffusionXLPipeline
) -> None:
    """Diffusers accepts the embeddings, and a weight has an effect."""
    pipe.set_progress_bar_config(disable=True)

    def latents(prompt: str) -> torch.Tensor:
        embeds = encoder.encode(prompt, "blue", weighted=True, guided=True)
        return pipe(
            **embeds.repeat(1),
            width=64,
            height=64,
            num_inference_steps=2,
            output_type="latent",
            generator=torch.Generator().manual_seed(1),
        ).images

    assert distance(latents("a red fox"), latents("a (red:1.8) fox")) > 1e-3
    assert latents("a (red:1.8) fox BREAK a hill").shape == (1, 4, 8, 8)


def test_float16_embeddings_stay_float16(sdxl_checkpoint: Checkpoint) -> None:
    """Compel computes weights in float32 and must convert the result back."""
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
        sdxl_checkpoint.path, local_files_only=True, add_watermarker=False, dtype=torch.float16
    )
    embeds = PromptEncoder(pipe).encode("a (red:1.5) [fox]", "blue", weighted=True, guided=True)
    assert {tensor.dtype for tensor in embeds.repeat(1).values()} == {torch.float16}
    assert embeds.strategy == "compel"


def test_the_encoders_read_nothing_that_was_not_handed_over(encoder: PromptEncoder) -> None:
    """The joined pieces of weights, the pieces of a word longer than a chunk, and the negative prompt; also
    where the embeddings are cached."""
    prompt = f"a (re:1.1)(d:1.1) {'w' * 300}fox"
    first, second = list[str](), list[str]()
    for handed in (first, second):
        with checked_by(handed.extend):
            encoder.encode(prompt, "bl(ue)", weighted=True, guided=True)
    whole = {f"a red {'w' * 300}fox", "blue"}
    assert whole <= set(first)
    assert whole <= set(second)
    assert any(text.endswith("fox") and "red" not in text for text in first)


def test_a_refused_text_is_not_encoded(encoder: PromptEncoder) -> None:
    """Not by the fallback to plain text either."""

    def refuse(texts: tuple[str, ...]) -> None:
        raise PolicyViolation("no")

    with pytest.raises(PolicyViolation), checked_by(refuse):
        encoder.encode("a fox", weighted=True, guided=True)
