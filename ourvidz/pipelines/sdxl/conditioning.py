"""From words to what the UNet reads: weights, long prompts, and the negative prompt beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import diffusers
import torch
from compel import Compel, ReturnedEmbeddingsType

from ourvidz import log
from ourvidz.pipelines import devices
from ourvidz.prompts.tokens import PromptTokenizer
from ourvidz.prompts.weights import Strategy, WeightedPrompt, literal, read

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Conditioning:
    """A prompt as the UNet reads it: `tokens` is (1, 77 x chunks, width), `pooled` is (1, width).

    The negative pair is None where nothing guides away from it, else of the same shapes. `strategy` says
    whether weights were applied, `reason` why they were not.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor
    negative_tokens: torch.Tensor | None
    negative_pooled: torch.Tensor | None
    strategy: Strategy = "none"
    reason: str | None = None

    @property
    def final_prompt_type(self) -> Literal["conditioning_tensor", "string"]:
        """What the callback says the prompt became."""
        return "conditioning_tensor" if self.strategy == "compel" else "string"

    def repeated(self, pictures: int) -> dict[str, torch.Tensor | None]:
        """The same words for every picture of a batch, under the names diffusers gives them."""
        named = {
            "prompt_embeds": self.tokens,
            "pooled_prompt_embeds": self.pooled,
            "negative_prompt_embeds": self.negative_tokens,
            "negative_pooled_prompt_embeds": self.negative_pooled,
        }
        return {
            name: None if value is None else value.repeat_interleave(pictures, dim=0)
            for name, value in named.items()
        }


class Conditioner:
    """Encodes the prompts of one loaded SDXL pipeline. Nothing is ever cut off: long prompts take more
    chunks of 77 tokens."""

    def __init__(self, pipeline: diffusers.StableDiffusionXLPipeline) -> None:
        self._pipe = pipeline
        self._device: torch.device = pipeline._execution_device
        self._encoders = [
            _Encoder(pipeline.tokenizer, pipeline.text_encoder, self._device),
            _Encoder(pipeline.tokenizer_2, pipeline.text_encoder_2, self._device),
        ]

    @torch.no_grad()
    def encode(
        self,
        prompt: str,
        negative: str | None = None,
        *,
        weighted: bool,
        guided: bool,
        weights: str | None = None,
    ) -> Conditioning:
        """Encode a prompt, with `weights` (A1111 syntax) behind it, and what to guide away from.

        `weighted` reads brackets as weights in all three, else they are text. `guided` asks for the negative
        pair. What cannot be weighted is encoded as plain text, with strategy "fallback" and the reason.
        """
        reading = read(prompt, weights, weighted=weighted)
        against = None if negative is None else read(negative, weighted=reading.strategy == "compel").prompt
        try:
            found = self._encode(reading.prompt, against, guided=guided)
        except Exception as error:
            if devices.is_out_of_memory(error):
                raise
            _log.warning("conditioning_failed", error=type(error).__name__)
            return self._plain(prompt, negative, guided=guided, error=error)
        finally:
            for encoder in self._encoders:
                encoder.forget()
        return replace(found, strategy=reading.strategy, reason=reading.reason)

    def _encode(
        self, prompt: WeightedPrompt, negative: WeightedPrompt | None, *, guided: bool
    ) -> Conditioning:
        """Both prompts at the length of the longer one."""
        zeros = negative is None and self._pipe.config.force_zeros_for_empty_prompt
        if not guided or zeros:
            [tokens] = self._embed(prompt)
            pooled = self._pooled(prompt)
            if not guided:
                return Conditioning(tokens, pooled, None, None)
            return Conditioning(tokens, pooled, torch.zeros_like(tokens), torch.zeros_like(pooled))
        against = negative or literal("")
        tokens, negative_tokens = self._embed(prompt, against)
        return Conditioning(tokens, self._pooled(prompt), negative_tokens, self._pooled(against))

    def _embed(self, *prompts: WeightedPrompt) -> list[torch.Tensor]:
        """The prompts, each seen by both encoders side by side, padded to one length with the empty prompt.

        The two tokenizers may disagree on a few words, and so on the number of chunks.
        """
        views = [[encoder.embed(prompt) for encoder in self._encoders] for prompt in prompts]
        length = max(view.shape[1] for pair in views for view in pair)
        return [
            torch.cat(
                [encoder.padded(view, length) for encoder, view in zip(self._encoders, pair, strict=True)],
                dim=-1,
            )
            for pair in views
        ]

    def _pooled(self, prompt: WeightedPrompt) -> torch.Tensor:
        return self._encoders[-1].pooled(prompt.text)

    def _plain(self, prompt: str, negative: str | None, *, guided: bool, error: Exception) -> Conditioning:
        """diffusers' own encoding, which reads the first 77 tokens."""
        tokens, negative_tokens, pooled, negative_pooled = self._pipe.encode_prompt(
            prompt=prompt,
            negative_prompt=negative,
            device=self._device,
            do_classifier_free_guidance=guided,
        )
        reason = (
            f"Compel could not encode this prompt ({type(error).__name__}): its first 77 tokens were used."
        )
        return Conditioning(tokens, pooled, negative_tokens, negative_pooled, "fallback", reason)


class _Encoder:
    """One text encoder with its tokenizer, behind Compel.

    Compel knows no A1111 syntax and weighs some punctuation by its own, so it is given fragments and never
    a prompt to parse.
    """

    def __init__(self, tokenizer: Any, model: Any, device: torch.device) -> None:
        self._model = _Remembering(model, device)
        self._tokenizer = PromptTokenizer("", tokenizer.backend_tokenizer, tokenizer.model_max_length)
        self._provider = Compel(
            tokenizer=tokenizer,
            text_encoder=self._model,
            truncate_long_prompts=False,
            returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
            device=device,
        ).conditioning_provider

    def embed(self, prompt: WeightedPrompt) -> torch.Tensor:
        """(1, 77 x chunks, width).

        Chunk by chunk: Compel encodes all of a text again for every fragment below weight 1.
        """
        found = [
            self._provider.get_embeddings_for_weighted_prompt_fragments(
                text_batch=[[fragment.text for fragment in chunk.fragments]],
                fragment_weights_batch=[[fragment.weight for fragment in chunk.fragments]],
                device=self._model.device,
            )
            for chunk in self._tokenizer.chunks(prompt)
        ]
        return torch.cat(found, dim=1)

    def padded(self, view: torch.Tensor, length: int) -> torch.Tensor:
        """`view` with chunks of the empty prompt behind it, until it is `length` tokens long."""
        empty = self._provider.empty_z.to(view)
        return torch.cat([view, *[empty] * ((length - view.shape[1]) // empty.shape[1])], dim=1)

    def pooled(self, text: str) -> torch.Tensor:
        """(1, width): the first 77 tokens in one vector."""
        pooled: torch.Tensor = self._provider.get_pooled_embeddings([text], device=self._model.device)
        return pooled

    def forget(self) -> None:
        """Let go of what the encoder answered for this job."""
        self._model.forget()


@dataclass(frozen=True, slots=True)
class _Answer:
    """What Compel reads of an encoder's answer: `hidden_states[-2]`, and the pooled text if there is one."""

    hidden_states: tuple[torch.Tensor, torch.Tensor]
    text_embeds: torch.Tensor | None


class _Remembering:
    """A text encoder that is asked only once for the same tokens: the pooled text of a short prompt comes
    with its first chunk, and a pass of the larger encoder is what conditioning costs."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._seen: dict[tuple[int, ...], _Answer] = {}
        self.device = device

    @property
    def dtype(self) -> torch.dtype:
        """What the encoder computes in."""
        found: torch.dtype = self._model.dtype
        return found

    def __call__(self, token_ids: torch.Tensor, mask: torch.Tensor | None = None, **_: Any) -> _Answer:
        """The encoder's answer for (1, 77) tokens. `mask` hides the words of a fragment below weight 1."""
        if mask is not None and not bool(mask.all()):
            return self._ask(token_ids, mask)
        key = tuple(token_ids.flatten().tolist())
        if key not in self._seen:
            self._seen[key] = self._ask(token_ids, None)
        return self._seen[key]

    def forget(self) -> None:
        """Let go of the tensors."""
        self._seen.clear()

    def _ask(self, token_ids: torch.Tensor, mask: torch.Tensor | None) -> _Answer:
        said = self._model(token_ids, mask, output_hidden_states=True, return_dict=True)
        penultimate, last = said.hidden_states[-2:]
        return _Answer((penultimate, last), getattr(said, "text_embeds", None))
