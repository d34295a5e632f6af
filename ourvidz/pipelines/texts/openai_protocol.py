"""What is said to a server that speaks the OpenAI API, and what its answers mean. Data in, data out."""

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
from ourvidz.jobs.sanitize import well_formed
from ourvidz.pipelines.texts.templates import Plain

DONE = b"[DONE]"
_BUSY = frozenset({408, 425, 429})
_LOCKED = frozenset({401, 403, 404})


@dataclass(frozen=True, slots=True)
class Event:
    """What one event of a stream said. `finish` and the counts may come in different ones."""

    text: str = ""
    finish: Literal["stop", "length"] | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None


def asked(job: ChatJob, model: str, *, plain: bool) -> tuple[str, dict[str, Any]]:
    """Where to post a job, below the server's URL, and what."""
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
        return "/completions", body | {"prompt": Plain().write(job.messages)}
    return "/chat/completions", body | {"messages": [message.model_dump() for message in job.messages]}


def read(data: bytes, job: ChatJob) -> Event:
    """One event. Raises what `refusal` returns for an error in it, `WorkerUnavailable` for what is none."""
    try:
        said = json.loads(data)
    except ValueError as broken:
        raise WorkerUnavailable("The language model's server sent something that is no JSON.") from broken
    if not isinstance(said, dict):
        raise WorkerUnavailable("The language model's server sent something that is no event.")
    if said.get("error"):
        raise refusal(_code(said["error"]), data, job)
    usage = said.get("usage") or {}
    choice: Mapping[str, Any] = next(iter(said.get("choices") or ()), {})
    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    finish = choice.get("finish_reason")
    return Event(
        # JSON can write half a character, which nothing behind this could store or send.
        text=well_formed(text),
        finish=None if finish is None else "length" if finish == "length" else "stop",
        tokens=usage.get("completion_tokens"),
        prompt_tokens=usage.get("prompt_tokens"),
    )


def refusal(status: int, body: bytes, job: ChatJob) -> OurvidzError:
    """Who must act when a server does not answer with text."""
    # What it says is for people who run it; callers get the rule.
    if status in (400, 413, 422) and b"context" in body.lower():
        rule = "short enough for the model's context together with max_tokens"
        given = f"{sum(len(text) for text in job.texts()):,} characters and max_tokens {job.max_tokens}"
        return InvalidParameters(
            f"messages must be {rule}; these are {given}.",
            field="messages",
            rule=rule,
            value=given,
            kind=CONTEXT_EXCEEDED,
        )
    if passes(status):
        return WorkerUnavailable(f"The language model's server is not available: it answers {status}.")
    if status in _LOCKED:
        return ModelLoadError(f"The language model's server answers {status}: check its URL, key and model.")
    return InternalError(f"The language model's server refuses the request: it answers {status}.")


def passes(status: int) -> bool:
    """Whether a server that answers so may well answer otherwise later."""
    return status in _BUSY or status >= 500


def listed(body: bytes) -> list[Mapping[str, Any]]:
    """The models in the answer to `/models`. `ValueError` when it is none."""
    said = json.loads(body)
    models = said.get("data") if isinstance(said, dict) else None
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise ValueError("no list of models")
    return models


def context_length(models: Iterable[Mapping[str, Any]], name: str) -> int | None:
    """How many tokens a listed model can see, where the server tells: vLLM and SGLang, or llama.cpp."""
    found = next((model for model in models if model.get("id") == name), {})
    told = found.get("max_model_len") or (found.get("meta") or {}).get("n_ctx_train")
    return told if isinstance(told, int) else None


def _code(error: object) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500
