"""A loaded Qwen checkpoint: tokenizer, forward pass and KV cache."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import ChatJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.loading import loading, weights_mib
from ourvidz.pipelines.texts.detokenizer import ByteVocabulary
from ourvidz.pipelines.texts.kv_cache import DecodeCache, KVCache, PrefillCache
from ourvidz.pipelines.texts.sampling import CheckpointSampling
from ourvidz.pipelines.texts.templates import ChatTemplate, ConversationTokenizer, PlainTemplate

SINGLE_THREAD_MIB = 64
"""Models up to this size (MiB) run on one CPU thread: splitting their small multiplications over threads
takes longer than computing them, three to twenty times longer when the other core is busy."""


class QwenModel:
    """One loaded checkpoint. `threads` is the number of CPU threads to run it on; None is torch's default."""

    def __init__(self, model: Any, tokenizer: Any, *, plain: bool) -> None:
        self._model = model
        template = PlainTemplate() if plain else ChatTemplate(tokenizer)
        self._tokenizer = ConversationTokenizer(tokenizer, template)
        self.device: torch.device = model.device
        self.vocabulary = ByteVocabulary(tokenizer)
        end_tokens = model.generation_config.eos_token_id or model.config.eos_token_id
        self.end_tokens = frozenset(end_tokens if isinstance(end_tokens, list | tuple) else [int(end_tokens)])
        self.sampling = _checkpoint_sampling(model.generation_config)
        self.memory_mib = weights_mib([model])
        small = self.device.type == "cpu" and self.memory_mib <= SINGLE_THREAD_MIB
        self.threads = 1 if small else None

    @property
    def context_length(self) -> int:
        """The maximum number of tokens of a text, prompt included."""
        return int(self._model.config.max_position_embeddings)

    def components(self) -> list[object]:
        """Everything that has weights."""
        return [self._model]

    def tokenize(self, job: ChatJob) -> list[int]:
        """The prompt tokens of a job's messages."""
        return self._tokenizer.tokenize(job.messages)

    def new_cache(self) -> KVCache:
        """An empty KV cache for a batch of texts."""
        config = self._model.config
        return KVCache(
            layers=config.num_hidden_layers,
            heads=config.num_key_value_heads,
            width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            device=self.device,
            dtype=self._model.dtype,
        )

    def hidden_states(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        cache: PrefillCache | DecodeCache,
        *,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The last layer's output, (texts, tokens, width), for `tokens` (texts, tokens) at `positions`.

        `mask` is the attention mask over the columns of `cache`; None is a causal mask, or none for a single
        token.
        """
        output = self._model.model(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=cache,
            # Given as a dictionary: otherwise transformers rebuilds the mask, a third of the time of a step.
            attention_mask={"full_attention": mask},
            use_cache=True,
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of the next token, (texts, vocabulary), for hidden states (texts, width)."""
        logits: torch.Tensor = self._model.lm_head(hidden)
        return logits


def load_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, plain: bool) -> QwenModel:
    """Load a checkpoint onto `device`. `plain`: it has no chat template (a base model). Raises
    `ModelLoadError`."""
    classes: tuple[Any, Any] = (transformers.Qwen2Tokenizer, transformers.Qwen2ForCausalLM)
    with loading(checkpoint):
        tokenizer = classes[0].from_pretrained(checkpoint.path, local_files_only=True)
        model = classes[1].from_pretrained(
            checkpoint.path, dtype=dtype, use_safetensors=True, local_files_only=True
        )
        _check_supported(checkpoint, model.config, tokenizer, plain=plain)
        return QwenModel(model.eval().to(device), tokenizer, plain=plain)


def _checkpoint_sampling(config: transformers.GenerationConfig) -> CheckpointSampling:
    """The part of a generation config that jobs have no parameters for."""
    return CheckpointSampling(float(config.repetition_penalty or 1.0), config.top_k or None)


def _check_supported(checkpoint: Checkpoint, config: Any, tokenizer: Any, *, plain: bool) -> None:
    if not plain and not tokenizer.chat_template:
        raise ModelLoadError(f"{checkpoint.path} has no chat template: it is not an instruct model.")
    if set(config.layer_types) != {"full_attention"}:
        raise ModelLoadError(f"{checkpoint.path} uses sliding windows, which are not supported.")
