"""Parses payloads of the chat and administration types."""

from __future__ import annotations

import re
from typing import Any, get_args

from ourvidz.jobs.catalog import JobType
from ourvidz.jobs.defaults import Defaults
from ourvidz.jobs.fields import Fields, FieldValue, check_text, fill_in, invalid_value
from ourvidz.jobs.generation import prompt_missing, read_num_images
from ourvidz.jobs.job import AdminJob, ChatJob, Message
from ourvidz.jobs.ranges import (
    CONVERSATION_CHARS,
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOKENS,
    PENALTY,
    SEED,
    STOP_CHARS,
    TEMPERATURE,
    TOP_P,
)

ROLES: tuple[str, ...] = get_args(Message.model_fields["role"].annotation)
MODELS: tuple[str, ...] = get_args(ChatJob.model_fields["model"].annotation)
DEFAULT_TOKENS = {"chat_enhance": 200}
_OPERATION = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def parse_chat(fields: Fields, row: JobType, common: dict[str, Any], defaults: Defaults) -> ChatJob:
    """Parse a chat payload: `messages`, or the older form with `prompt` and `config.system_prompt`."""
    read_num_images(fields, row)
    seed = fields.integer("seed", "config.seed", "metadata.seed", within=SEED)
    sent = {
        **common,
        "messages": _messages(fields),
        "model": fields.choice("model", "config.model", among=MODELS),
        "max_tokens": fields.integer("max_tokens", "config.max_tokens", within=MAX_TOKENS),
        "temperature": fields.number("temperature", "config.temperature", within=TEMPERATURE),
        "top_p": fields.number("top_p", "config.top_p", within=TOP_P),
        "frequency_penalty": _penalty(fields, "frequency_penalty"),
        "presence_penalty": _penalty(fields, "presence_penalty"),
        "stop": _stop(fields),
        "seed": defaults.draw_seed() if seed is None else seed,
        "seed_drawn": seed is None,
        "sfw_mode": common["flags"].get("sfw_mode"),
        "stream": fields.boolean("stream", "config.stream"),
    }
    return ChatJob(**fill_in(sent, {"max_tokens": DEFAULT_TOKENS.get(row.name, 512)}))


def parse_admin(fields: Fields, row: JobType, common: dict[str, Any], defaults: Defaults) -> AdminJob:
    """Parse an `admin_utilities` payload; without an operation it is `status`."""
    del row, defaults
    field = fields.first("operation", "config.operation")
    if field is None:
        return AdminJob(**fill_in(common | {"operation": None}, {}))
    if not isinstance(field.value, str) or not _OPERATION.fullmatch(field.value):
        raise invalid_value(field.path, "the name of an operation", field.value)
    return AdminJob(**common, operation=field.value)


def _penalty(fields: Fields, name: str) -> float | None:
    """The penalty `name`, at the top level or in `config`; None if the payload has none."""
    return fields.number(name, f"config.{name}", within=PENALTY)


def _stop(fields: Fields) -> tuple[str, ...]:
    """The stop strings: one text or a list."""
    field = fields.first("stop", "config.stop")
    if field is None:
        return ()
    texts = field.value if isinstance(field.value, (list, tuple)) else [field.value]
    if len(texts) > MAX_STOPS or not all(isinstance(text, str) and text for text in texts):
        raise invalid_value(field.path, f"a text or a list of at most {MAX_STOPS} texts", field.value)
    return tuple(check_text(field.path, text, limit=STOP_CHARS) for text in texts)


def _messages(fields: Fields) -> tuple[Message, ...]:
    """The conversation in `messages`, or one made of `prompt` and `config.system_prompt`."""
    field = fields.first("messages")
    if field is not None:
        return _parse_messages(field)
    system = fields.text("config.system_prompt", limit=CONVERSATION_CHARS)
    prompt = fields.prompt()
    if not prompt:
        raise prompt_missing()
    system_messages = () if system is None else (Message(role="system", content=system),)
    return (*system_messages, Message(role="user", content=prompt))


def _parse_messages(field: FieldValue) -> tuple[Message, ...]:
    """Parse a list of messages. Raises `InvalidParameters` if there are too many or they are too long."""
    if not isinstance(field.value, (list, tuple)) or not 1 <= len(field.value) <= MAX_MESSAGES:
        raise invalid_value(field.path, f"a list of 1 to {MAX_MESSAGES} messages", field.value)
    messages = tuple(_message(f"{field.path}[{at}]", item) for at, item in enumerate(field.value))
    if sum(len(message.content) for message in messages) > CONVERSATION_CHARS:
        raise invalid_value(
            field.path, f"messages of at most {CONVERSATION_CHARS:,} characters in all", field.value
        )
    return messages


def _message(path: str, item: object) -> Message:
    if not isinstance(item, dict):
        raise invalid_value(path, "an object with role and content", item)
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid_value(f"{path}.role", f"one of {', '.join(ROLES)}", role)
    content = check_text(f"{path}.content", item.get("content"), limit=CONVERSATION_CHARS)
    return Message(role=role, content=content)
