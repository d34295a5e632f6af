"""Encodes prompts for the UNet: weighted fragments, prompts longer than 77 tokens, negative prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import diffusers
import torch
from compel import Compel, ReturnedEmbeddingsType

from ourvidz import log
from ourvidz.errors import PolicyViolation
from ourvidz.pipelines import devices
from ourvidz.pipelines.tensor_cache import TensorCache, cache_key
from ourvidz.prompts import weights as prompt_weights
from ourvidz.prompts.encoder_texts import hand_over
from ourvidz.prompts.tokens import PromptTokenizer
from ourvidz.prompts.weights import Strategy, WeightedPrompt, literal

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """An encoded prompt. `prompt_embeds` is (1, 77 x chunks, width), `pooled_prompt_embeds` (1, width).

    The negative pair has the same shapes; it is None without classifier-free guidance. `strategy` says
    whether prompt weights were applied, `reason` why they were not.
    """

    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor | None
    negative_pooled_prompt_embeds: torch.Tensor | None
    strategy: Strategy = "none"
    reason: str | None = None

    @property
    def final_prompt_type(self) -> Literal["conditioning_tensor", "string"]:
        """`final_prompt_type` of the callback's metadata."""
        return "conditioning_tensor" if self.strategy == "compel" else "string"

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """The four tensors, in the order of the fields."""
        return (
            self.prompt_embeds,
            self.pooled_prompt_embeds,
            self.negative_prompt_embeds,
            self.negative_pooled_prompt_embeds,
        )

    def repeat(self, images: int) -> dict[str, torch.Tensor | None]:
        """The four tensors by their diffusers names, with `images` rows instead of one."""
        tensors = {
            "prompt_embeds": self.prompt_embeds,
            "pooled_prompt_embeds": self.pooled_prompt_embeds,
            "negative_prompt_embeds": self.negative_prompt_embeds,
            "negative_pooled_prompt_embeds": self.negative_pooled_prompt_embeds,
        }
        return {
            name: None if tensor is None else tensor.repeat_interleave(images, dim=0)
            for name, tensor in tensors.items()
        }


class PromptEncoder:
    """Encodes prompts with both text encoders of a loaded SDXL pipeline. Long prompts are never truncated:
    they take several chunks of 77 tokens.

    `cache` keeps encoded prompts under the name of the encoders' `weights`. A prompt that is found there does
    not touch the encoders.
    """

    def __init__(
        self,
        pipeline: diffusers.StableDiffusionXLPipeline,
        cache: TensorCache | None = None,
        *,
        weights: str = "",
    ) -> None:
        self._pipe = pipeline
        self._cache = cache or TensorCache()
        self._weights = weights
        self._device: torch.device = pipeline._execution_device
        self._encoders = [
            _TextEncoder(pipeline.tokenizer, pipeline.text_encoder, self._device),
            _TextEncoder(pipeline.tokenizer_2, pipeline.text_encoder_2, self._device),
        ]

    @torch.no_grad()
    def encode(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        *,
        weighted: bool,
        guided: bool,
        weights: str | None = None,
    ) -> PromptEmbeds:
        """Encode a prompt, with `weights` (A1111 syntax) appended, and the negative prompt.

        `weighted` interprets brackets in all three texts as weights; otherwise they are plain text. `guided`
        requests the negative embeddings. A prompt whose weights cannot be applied is encoded as plain text,
        with strategy "fallback" and the reason.
        """
        parsed = prompt_weights.parse_prompt(prompt, weights, weighted=weighted)
        negative = None
        if negative_prompt is not None:
            negative = prompt_weights.parse_prompt(
                negative_prompt, weighted=parsed.strategy == "compel"
            ).prompt
        hand_over(parsed.prompt.encoder_texts + (negative.encoder_texts if negative else ()))
        key = cache_key(
            "sdxl", self._weights, parsed.prompt, negative, guided, self._dtypes, self._device.type
        )
        cached = self._cache.get(key, self._device)
        if cached is not None:
            embeds = PromptEmbeds(*cached)  # type: ignore[arg-type]  # the first two are always there
            return replace(embeds, strategy=parsed.strategy, reason=parsed.reason)
        try:
            embeds = self._encode(parsed.prompt, negative, guided=guided)
        except Exception as error:
            if isinstance(error, PolicyViolation) or devices.is_out_of_memory(error):
                raise
            _log.warning("conditioning_failed", error=type(error).__name__)
            return self._encode_with_diffusers(prompt, negative_prompt, guided=guided, error=error)
        finally:
            for encoder in self._encoders:
                encoder.clear_cache()
        self._cache.put(key, embeds.tensors())
        return replace(embeds, strategy=parsed.strategy, reason=parsed.reason)

    @property
    def _dtypes(self) -> tuple[torch.dtype, ...]:
        return tuple(encoder.dtype for encoder in (self._pipe.text_encoder, self._pipe.text_encoder_2))

    def _encode(
        self, prompt: WeightedPrompt, negative: WeightedPrompt | None, *, guided: bool
    ) -> PromptEmbeds:
        """Encode both prompts, padded to the length of the longer one."""
        zeros = negative is None and self._pipe.config.force_zeros_for_empty_prompt
        if not guided or zeros:
            [embeds] = self._embed(prompt)
            pooled = self._pool(prompt)
            if not guided:
                return PromptEmbeds(embeds, pooled, None, None)
            return PromptEmbeds(embeds, pooled, torch.zeros_like(embeds), torch.zeros_like(pooled))
        negative = negative or literal("")
        embeds, negative_embeds = self._embed(prompt, negative)
        return PromptEmbeds(embeds, self._pool(prompt), negative_embeds, self._pool(negative))

    def _embed(self, *prompts: WeightedPrompt) -> list[torch.Tensor]:
        """Embeddings of each prompt, (1, 77 x chunks, sum of both widths), padded to one length with the
        empty prompt. The two tokenizers may disagree on the number of chunks."""
        pairs = [[encoder.embed(prompt) for encoder in self._encoders] for prompt in prompts]
        length = max(embeds.shape[1] for pair in pairs for embeds in pair)
        return [
            torch.cat(
                [encoder.pad(embeds, length) for encoder, embeds in zip(self._encoders, pair, strict=True)],
                dim=-1,
            )
            for pair in pairs
        ]

    def _pool(self, prompt: WeightedPrompt) -> torch.Tensor:
        """(1, width) of the second encoder."""
        return self._encoders[-1].pool(prompt.text)

    def _encode_with_diffusers(
        self, prompt: str, negative_prompt: str | None, *, guided: bool, error: Exception
    ) -> PromptEmbeds:
        """The encoding of diffusers itself, which reads the first 77 tokens only."""
        hand_over(text for text in (prompt, negative_prompt) if text)
        embeds, negative_embeds, pooled, negative_pooled = self._pipe.encode_prompt(
            prompt=prompt,
            negative_prompt=negative_prompt,
            device=self._device,
            do_classifier_free_guidance=guided,
        )
        reason = (
            f"Compel could not encode this prompt ({type(error).__name__}): its first 77 tokens were used."
        )
        return PromptEmbeds(embeds, pooled, negative_embeds, negative_pooled, "fallback", reason)


class _TextEncoder:
    """One text encoder and its tokenizer, called through Compel.

    Compel does not know the A1111 syntax and interprets some punctuation as weights of its own. So it is
    given weighted fragments, never a prompt to parse.
    """

    def __init__(self, tokenizer: Any, model: Any, device: torch.device) -> None:
        self._model = _CachedTextModel(model, device)
        self._library_tokenizer = tokenizer
        self._tokenizer = PromptTokenizer("", tokenizer.backend_tokenizer, tokenizer.model_max_length)

    @cached_property
    def _provider(self) -> Any:
        """Built on first use: it runs the encoder on the empty prompt."""
        return Compel(
            tokenizer=self._library_tokenizer,
            text_encoder=self._model,
            truncate_long_prompts=False,
            returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
            device=self._model.device,
        ).conditioning_provider

    def embed(self, prompt: WeightedPrompt) -> torch.Tensor:
        """(1, 77 x chunks, width). Encoded chunk by chunk: Compel encodes the whole text again for every
        fragment with a weight below 1."""
        chunks = self._tokenizer.chunks(prompt)
        # A word that is longer than a chunk is cut: only the chunks show where.
        hand_over("".join(fragment.text for fragment in chunk.fragments) for chunk in chunks)
        embeds = [
            self._provider.get_embeddings_for_weighted_prompt_fragments(
                text_batch=[[fragment.text for fragment in chunk.fragments]],
                fragment_weights_batch=[[fragment.weight for fragment in chunk.fragments]],
                device=self._model.device,
            )
            for chunk in chunks
        ]
        return torch.cat(embeds, dim=1)

    def pad(self, embeds: torch.Tensor, length: int) -> torch.Tensor:
        """`embeds` followed by chunks of the empty prompt, `length` tokens in all."""
        empty = self._provider.empty_z.to(embeds)
        return torch.cat([embeds, *[empty] * ((length - embeds.shape[1]) // empty.shape[1])], dim=1)

    def pool(self, text: str) -> torch.Tensor:
        """(1, width): the pooled embedding of the first 77 tokens."""
        pooled: torch.Tensor = self._provider.get_pooled_embeddings([text], device=self._model.device)
        return pooled

    def clear_cache(self) -> None:
        """Free the encoder outputs that were kept during one `encode`."""
        self._model.clear_cache()


@dataclass(frozen=True, slots=True)
class _TextModelOutput:
    """The part of a text encoder's output that Compel reads: `hidden_states[-2]` and the pooled text."""

    hidden_states: tuple[torch.Tensor, torch.Tensor]
    text_embeds: torch.Tensor | None


class _CachedTextModel:
    """Runs a text encoder once for equal tokens. The pooled embedding of a short prompt comes with its first
    chunk; a second pass of the larger encoder would dominate the time of encoding."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._outputs: dict[tuple[int, ...], _TextModelOutput] = {}
        self.device = device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the encoder."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    def __call__(
        self, token_ids: torch.Tensor, mask: torch.Tensor | None = None, **_: Any
    ) -> _TextModelOutput:
        """Return the text encoder's output for token ids of shape (1, 77), cached by token ids.

        `mask` hides the tokens of a fragment with a weight below 1; masked
        outputs are not cached."""
        if mask is not None and not bool(mask.all()):
            return self._run(token_ids, mask)
        key = tuple(token_ids.flatten().tolist())
        if key not in self._outputs:
            self._outputs[key] = self._run(token_ids, None)
        return self._outputs[key]

    def clear_cache(self) -> None:
        """Free the cached outputs."""
        self._outputs.clear()

    def _run(self, token_ids: torch.Tensor, mask: torch.Tensor | None) -> _TextModelOutput:
        output = self._model(token_ids, mask, output_hidden_states=True, return_dict=True)
        penultimate, last = output.hidden_states[-2:]
        return _TextModelOutput((penultimate, last), getattr(output, "text_embeds", None))
