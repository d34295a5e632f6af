"""Builds requests to OpenAI-compatible servers and parses their responses. Pure functions without I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ourvidz.errors import (
    CONTEXT_EXCEEDED,
    InternalError,
    InvalidParameters,
    ModelLoadError,
    OurvidzError,
    WorkerUnavailable,
)
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.sanitize import replace_surrogates
from ourvidz.pipelines.texts.templates import PlainTemplate

DONE = b"[DONE]"
"""The data of a stream's last event."""
_TRANSIENT_STATUSES = frozenset({408, 425, 429})
_MISCONFIGURED_STATUSES = frozenset({401, 403, 404})


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a streamed completion. `finish_reason` and the token counts may come in separate
    events."""

    text: str = ""
    finish_reason: Literal["stop", "length"] | None = None
    tokens_generated: int | None = None
    prompt_tokens: int | None = None


def build_request(job: ChatJob, model: str, *, plain: bool) -> tuple[str, dict[str, Any]]:
    """Build the streamed request of a job. Returns the path below the server's URL and the JSON body.

    `plain` requests a text completion instead of a chat completion.
    """
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": job.max_tokens,
        "temperature": job.temperature,
        "top_p": job.top_p,
        "frequency_penalty": job.frequency_penalty,
        "presence_penalty": job.presence_penalty,
        "seed": job.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if job.stop:
        body["stop"] = list(job.stop)
    if plain:
        return "/completions", body | {"prompt": PlainTemplate().render(job.messages)}
    return "/chat/completions", body | {"messages": [message.model_dump() for message in job.messages]}


def parse_event(data: bytes, job: ChatJob) -> StreamEvent:
    """Parse the data of one event. Raises the error of `error_for_status` for an error event,
    `WorkerUnavailable` for malformed data."""
    try:
        event = json.loads(data)
    except ValueError as error:
        raise WorkerUnavailable("The language model's server sent something that is no JSON.") from error
    if not isinstance(event, dict):
        raise WorkerUnavailable("The language model's server sent something that is no event.")
    if event.get("error"):
        raise error_for_status(_status_of(event["error"]), data, job)
    usage = event.get("usage") or {}
    choice: Mapping[str, Any] = next(iter(event.get("choices") or ()), {})
    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    reason = choice.get("finish_reason")
    return StreamEvent(
        # JSON can contain lone surrogates, which cannot be stored or sent as UTF-8.
        text=replace_surrogates(text),
        finish_reason=None if reason is None else "length" if reason == "length" else "stop",
        tokens_generated=usage.get("completion_tokens"),
        prompt_tokens=usage.get("prompt_tokens"),
    )


def error_for_status(status: int, body: bytes, job: ChatJob) -> OurvidzError:
    """The error for an HTTP status other than 200: caller, operator or server at fault.

    The server's own message is not repeated: it is for its operator.
    """
    if status in (400, 413, 422) and b"context" in body.lower():
        rule = "short enough for the model's context together with max_tokens"
        length = sum(len(text) for text in job.texts())
        value = f"{length:,} characters and max_tokens {job.max_tokens}"
        return InvalidParameters(
            f"messages must be {rule}; these are {value}.",
            field="messages",
            rule=rule,
            value=value,
            kind=CONTEXT_EXCEEDED,
        )
    if is_transient(status):
        return WorkerUnavailable(f"The language model's server is not available: it answers {status}.")
    if status in _MISCONFIGURED_STATUSES:
        return ModelLoadError(f"The language model's server answers {status}: check its URL, key and model.")
    return InternalError(f"The language model's server refuses the request: it answers {status}.")


def is_transient(status: int) -> bool:
    """Whether a request that was answered with this status may succeed later."""
    return status in _TRANSIENT_STATUSES or status >= 500


def parse_models(body: bytes) -> list[Mapping[str, Any]]:
    """The models in the response to `GET /models`. Raises `ValueError` for a malformed response."""
    response = json.loads(body)
    models = response.get("data") if isinstance(response, dict) else None
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise ValueError("no list of models")
    return models


def context_length(models: Iterable[Mapping[str, Any]], name: str) -> int | None:
    """The context length (tokens) of a listed model; None if the server does not report it. vLLM and SGLang
    do, and llama.cpp under another name."""
    model = next((model for model in models if model.get("id") == name), {})
    length = model.get("max_model_len") or (model.get("meta") or {}).get("n_ctx_train")
    return length if isinstance(length, int) else None


def _status_of(error: object) -> int:
    """The HTTP status in the `code` field of an error event; 500 if it has none."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500
