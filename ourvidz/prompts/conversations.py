"""The texts that language models without a chat template continue."""

from __future__ import annotations

from collections.abc import Sequence

from ourvidz.jobs.job import Message

SEPARATOR = "\n\n"
COMPLETION_TEMPLATE = "{system}\n\nPrompt: {prompt}\nEnriched:"
"""The text that the base model continues to the end of the line when it enhances a prompt."""


def plain_conversation(messages: Sequence[Message]) -> str:
    """The contents of the messages, separated by empty lines: base models know no roles."""
    return SEPARATOR.join(message.content for message in messages)


def completion_text(prompt: str, system_prompt: str) -> str:
    """The text that the base model continues with an enhanced prompt. Line breaks in the prompt become
    spaces, because a line break ends the answer."""
    return COMPLETION_TEMPLATE.format(system=system_prompt, prompt=" ".join(prompt.split()))
