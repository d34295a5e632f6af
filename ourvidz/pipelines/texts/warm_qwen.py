"""A Qwen checkpoint on the device, and what works on it."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from ourvidz.errors import ModelLoadError
from ourvidz.jobs.job import ChatJob
from ourvidz.pipelines.checkpoints import Checkpoint
from ourvidz.pipelines.loading import reading, weights_mib
from ourvidz.pipelines.texts.kv_cache import Going, KeyValues, Opening
from ourvidz.pipelines.texts.spelling import ByteVocabulary
from ourvidz.pipelines.texts.templates import Chat, Plain, Reader

SMALL_MIB = 64
"""On a CPU, up to this much of weights, handing half of a multiplication to another thread takes longer than
the multiplication: three to twenty times when that core is busy."""


class WarmQwen:
    """One loaded checkpoint."""

    def __init__(self, model: Any, tokenizer: Any, *, plain: bool) -> None:
        self._model = model
        self._reader = Reader(tokenizer, Plain() if plain else Chat(tokenizer))
        self.device: torch.device = model.device
        self.alphabet = ByteVocabulary(tokenizer)
        self.ends = frozenset(_listed(model.generation_config.eos_token_id or model.config.eos_token_id))
        self.memory_mib = weights_mib([model])
        self.threads = 1 if self.device.type == "cpu" and self.memory_mib <= SMALL_MIB else None

    @property
    def context(self) -> int:
        """How many tokens the model can see."""
        return int(self._model.config.max_position_embeddings)

    def tokens(self, job: ChatJob) -> list[int]:
        """A job's messages as the model reads them."""
        return self._reader.read(job.messages)

    def cache(self) -> KeyValues:
        """An empty memory for a batch of texts."""
        config = self._model.config
        return KeyValues(
            layers=config.num_hidden_layers,
            heads=config.num_key_value_heads,
            width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            device=self.device,
            dtype=self._model.dtype,
        )

    def hidden(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        memory: Opening | Going,
        *,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the model thinks after every one of `tokens` (texts, tokens): (texts, tokens, width).

        `mask` says what each may see of `memory`; None is everything up to itself.
        """
        given = self._model.model(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=memory,
            # Made here once: the library would make it again at every step, which takes a third of it.
            attention_mask={"full_attention": mask},
            use_cache=True,
        )
        found: torch.Tensor = given.last_hidden_state
        return found

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """How likely every token is next, (texts, vocabulary)."""
        found: torch.Tensor = self._model.lm_head(hidden)
        return found


def warm(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, plain: bool) -> WarmQwen:
    """The checkpoint on `device`; `plain` is one without a chat template. `ModelLoadError` says what is
    wrong."""
    kinds: tuple[Any, Any] = (transformers.Qwen2Tokenizer, transformers.Qwen2ForCausalLM)
    with reading(checkpoint):
        tokenizer = kinds[0].from_pretrained(checkpoint.path, local_files_only=True)
        model = kinds[1].from_pretrained(
            checkpoint.path, dtype=dtype, use_safetensors=True, local_files_only=True
        )
        _check(checkpoint, model.config, tokenizer, plain=plain)
        return WarmQwen(model.eval().to(device), tokenizer, plain=plain)


def _check(checkpoint: Checkpoint, config: Any, tokenizer: Any, *, plain: bool) -> None:
    if not plain and not tokenizer.chat_template:
        raise ModelLoadError(f"{checkpoint.path} has no chat template: it is not an instruct model.")
    if set(config.layer_types) != {"full_attention"}:
        raise ModelLoadError(f"{checkpoint.path} uses sliding windows, which are not supported.")


def _listed(found: Any) -> list[int]:
    return list(found) if isinstance(found, list | tuple) else [int(found)]
