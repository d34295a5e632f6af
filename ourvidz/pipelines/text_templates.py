"""How the messages of a conversation become the text that a model goes on from.

No words are added: whatever a checkpoint's own template would say in the name of a caller is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ourvidz.jobs.job import Message

BETWEEN = "\n\n"


class Template(Protocol):
    """Writes conversations."""

    def write(self, messages: Sequence[Message]) -> str:
        """The text whose continuation is the answer."""


class Plain:
    """For models without roles: the contents of the messages, an empty line between two of them."""

    def write(self, messages: Sequence[Message]) -> str:
        """The text whose continuation is the answer."""
        return BETWEEN.join(message.content for message in messages)


class Chat:
    """For models that were taught a chat template: the one that their tokenizer brings.

    Some templates (Qwen2.5's) put in a system prompt of their own where the caller sends none. Such a
    template is given an empty one instead.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        asked, silence = {"role": "user", "content": "?"}, {"role": "system", "content": ""}
        self._opening = [silence] if len(self._render([asked])) > len(self._render([silence, asked])) else []

    def write(self, messages: Sequence[Message]) -> str:
        """The text whose continuation is the answer."""
        turns = [message.model_dump() for message in messages]
        begins_with_system = bool(turns) and turns[0]["role"] == "system"
        return self._render(turns if begins_with_system else [*self._opening, *turns])

    def _render(self, turns: list[dict[str, str]]) -> str:
        written: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return written
