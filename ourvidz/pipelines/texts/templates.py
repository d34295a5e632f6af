"""Renders the messages of a conversation as the text that a model continues, and tokenizes it.

Nothing is added to the messages: a default system prompt of a checkpoint's chat template is suppressed. And
nothing in a message is read as a control token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from ourvidz.jobs.job import Message
from ourvidz.prompts.conversations import plain_conversation
from ourvidz.prompts.encoder_texts import hand_over

_LITERAL_MARK = "\0"
"""Encloses text in which control tokens are plain text. Job parsing refuses messages that contain it."""


class Template(Protocol):
    """Renders conversations."""

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the model continues with its answer."""


class PlainTemplate:
    """For base models, which have no roles: the contents of the messages, separated by empty lines."""

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the model continues with its answer."""
        return plain_conversation(messages)


class ChatTemplate:
    """For instruct models: the chat template of their tokenizer.

    Some templates (Qwen2.5's) insert a default system prompt if there is none. They are given an empty one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        user, empty_system = {"role": "user", "content": "?"}, {"role": "system", "content": ""}
        inserts_system_prompt = len(self._apply([user])) > len(self._apply([empty_system, user]))
        self._default_messages = [empty_system] if inserts_system_prompt else []

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the model continues with its answer."""
        dumped = [message.model_dump() for message in messages]
        has_system = bool(dumped) and dumped[0]["role"] == "system"
        return self._apply(dumped if has_system else [*self._default_messages, *dumped])

    def _apply(self, messages: list[dict[str, str]]) -> str:
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text


class ConversationTokenizer:
    """Tokenizes rendered conversations. Control tokens such as `<|im_start|>` are recognised where the
    template wrote them; inside a message they are plain text, or any caller could write a system message."""

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self._tokenizer = tokenizer
        self._template = template
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special_tokens = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def tokenize(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of the rendered messages."""
        marked = [
            message.model_copy(update={"content": self._mark_special_tokens(message.content)})
            for message in messages
        ]
        rendered = self._template.render(marked)
        hand_over([rendered.replace(_LITERAL_MARK, "")])
        parts = rendered.split(_LITERAL_MARK)
        return [
            token
            for index, part in enumerate(parts)
            for token in self._token_ids(part, literal=index % 2 == 1)
        ]

    def _mark_special_tokens(self, content: str) -> str:
        """Put special tokens in a message between marks, so that they are tokenized as text."""
        return self._special_tokens.sub(
            lambda match: f"{_LITERAL_MARK}{match[0]}{_LITERAL_MARK}", content.replace(_LITERAL_MARK, "")
        )

    def _token_ids(self, text: str, *, literal: bool) -> list[int]:
        token_ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=literal
        ).input_ids
        return token_ids
