"""How the messages of a conversation become the text that a model goes on from.

No words are added: whatever a checkpoint's own template would say in the name of a caller is left out. Nor
does a caller write the template's part: what looks like a control token in a message is ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from ourvidz.jobs.job import Message

BETWEEN = "\n\n"
_MARK = "\0"
"""Stands around what is to be read as it is written. The door lets no message with one in."""


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


class Reader:
    """Tokens of whole conversations. `<|im_start|>` and its like open and close turns where the template
    wrote them; in a message they are letters, or anybody could speak as the system."""

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self._tokenizer = tokenizer
        self._template = template
        signs = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._signs = re.compile("|".join(map(re.escape, signs)) or r"(?!)")

    def read(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of the text that the template makes of the messages."""
        marked = [
            message.model_copy(
                update={"content": self._signs.sub(_marked, message.content.replace(_MARK, ""))}
            )
            for message in messages
        ]
        parts = self._template.write(marked).split(_MARK)
        return [token for at, part in enumerate(parts) for token in self._tokens(part, literal=at % 2 == 1)]

    def _tokens(self, text: str, *, literal: bool) -> list[int]:
        found: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=literal
        ).input_ids
        return found


def _marked(sign: re.Match[str]) -> str:
    return f"{_MARK}{sign[0]}{_MARK}"
