"""Chat completions and models in the form of the OpenAI API: its clients need only another base URL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from ourvidz.errors import InvalidParameters, NotFound, OurvidzError
from ourvidz.jobs.chats import MODELS
from ourvidz.jobs.fields import Fields, invalid_value
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.ranges import MAX_TOKENS
from ourvidz.jobs.sanitize import summarize
from ourvidz.jobs.schema import conversation_schema
from ourvidz.web import audit, chat, openai_errors, sse
from ourvidz.web.body import read_json
from ourvidz.web.openai_errors import ErrorDocument
from ourvidz.web.rate_limits import limits_of, open_streams
from ourvidz.web.synchronous import (
    TextResult,
    await_first_event,
    cancel_on_disconnect,
    encode_events,
    read_result,
    stream_text,
)
from ourvidz.wiring import control

router = APIRouter(tags=["openai"])

JOB_TYPE = "chat_conversation"
DONE = "[DONE]"
"""The data of the event that ends a stream."""
LENGTH_FIELDS = ("max_completion_tokens", "max_tokens")
_PASSED_FIELDS = (
    *("model", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "stream"),
    *("sfw_mode", "content_tier", "unrestricted_mode", "callback_url", "user_id"),
)
_UNSUPPORTED_FIELDS = ("tools", "functions", "logprobs", "logit_bias", "audio")
"""Fields that would change an answer and are not implemented: a request with one is refused."""
COMPLETION_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorDocument} for status in (400, 401, 403, 404, 413, 429, 500, 503, 504)
}
MODEL_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorDocument} for status in (401, 403, 429)
}


class AssistantMessage(BaseModel):
    """The generated message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one choice of a completion."""

    index: Literal[0] = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """A chat completion. `GET /jobs/{id}` returns its job; `usage` is null if the deadline cut it off."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None


class ModelCard(BaseModel):
    """One model; `created` is the Unix time at which its worker started, 0 without a live worker."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["ourvidz"] = "ourvidz"


class ModelList(BaseModel):
    """The available models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def _request_body() -> dict[str, Any]:
    """The OpenAPI description of the request body, from the schema of conversations."""
    schemas = conversation_schema()["properties"]
    properties: dict[str, Any] = {
        name: schemas[name] for name in ("messages", *_PASSED_FIELDS) if name in schemas
    }
    openai_fields: dict[str, Any] = {
        "max_completion_tokens": schemas["max_tokens"],
        "max_tokens": schemas["max_tokens"],
        "n": {"enum": [1, None]},
        "stream_options": {
            "type": ["object", "null"],
            "properties": {"include_usage": {"type": ["boolean", "null"]}},
        },
    }
    schema = {"type": "object", "required": ["messages"], "properties": properties | openai_fields}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


CHUNK: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "A chat.completion.chunk, or [DONE]."}},
}


@router.post(
    "/v1/chat/completions",
    response_model=Completion,
    responses={200: {"content": {"text/event-stream": {"itemSchema": CHUNK}}}, **COMPLETION_ERRORS},
    openapi_extra=_request_body(),
)
async def completions(request: Request) -> Response:
    """Continue a conversation."""
    body = await read_json(request)
    payload = _payload(body)
    job = await run_in_threadpool(chat.parse_request, request, payload, JOB_TYPE, prefix="chatcmpl-")
    stream = stream_text(job, limits_of(request))
    if job.stream:
        open_streams.open(request)
        encoder = _ChunkEncoder(job, with_usage=_includes_usage(body))
        events = encode_events(stream, encoder.encode, partial(_encode_error, request))
        return sse.EventStreamResponse(await await_first_event(request, events), {"X-Job-Id": job.id})
    result = await cancel_on_disconnect(request, lambda: read_result(stream))
    return JSONResponse(_completion(result, job))


@router.get("/v1/models", responses={**MODEL_ERRORS, 503: {"model": ErrorDocument}})
def models() -> ModelList:
    """List the models."""
    return ModelList(data=_model_cards())


@router.get(
    "/v1/models/{model}",
    response_model=ModelCard,
    responses={**MODEL_ERRORS, 404: {"model": ErrorDocument}, 503: {"model": ErrorDocument}},
    openapi_extra={
        "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    },
)
async def model(request: Request) -> ModelCard:
    """Read one model."""
    # Not a parameter: the framework would document a 422, which this API does not have.
    name = _check_model(request.path_params["model"])
    return next(card for card in await run_in_threadpool(_model_cards) if card.id == name)


def _model_cards() -> list[ModelCard]:
    started_at = [worker.started_at for worker in control.current().ledger.online_workers(family="chat")]
    return [ModelCard(id=name, created=int(min(started_at, default=0))) for name in MODELS]


def _check_model(name: object) -> str:
    """`name` itself, when it is a model. Raises `NotFound`."""
    if name not in MODELS:
        raise NotFound(f"The model {summarize(name)!r} does not exist.", field="model", value=name)
    return str(name)


def _payload(body: object) -> dict[str, Any]:
    """Translate a request body into a job payload. Raises `InvalidParameters` for what is not implemented."""
    fields = Fields(body)
    assert isinstance(body, dict)
    fields.one_of("n", numbers=(1,))
    for name in _UNSUPPORTED_FIELDS:
        if body.get(name):
            raise InvalidParameters(f"{name} is not supported.", field=name, rule="not given")
    _require_plain_text(body.get("response_format"))
    payload = {name: body[name] for name in _PASSED_FIELDS if name in body}
    requested = fields.first("model")
    if requested is not None:
        payload["model"] = _check_model(requested.value)
    length = fields.integer(*LENGTH_FIELDS, within=MAX_TOKENS)
    if length is not None:
        payload["max_tokens"] = length
    return {**payload, "messages": _messages(body.get("messages"))}


def _require_plain_text(response_format: object) -> None:
    if response_format is None:
        return
    if not isinstance(response_format, dict) or response_format.get("type") != "text":
        raise invalid_value("response_format", 'of the type "text"', response_format)


def _includes_usage(body: Any) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _messages(messages: object) -> list[Any]:
    """The messages with each content joined to one text; the payload parser checks the rest."""
    if not isinstance(messages, list) or not messages:
        raise invalid_value("messages", "a list of messages", messages)
    return [_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _message(path: str, message: object) -> object:
    if not isinstance(message, dict):
        return message
    role = "system" if message.get("role") == "developer" else message.get("role")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part_text(f"{path}.content[{index}]", part) for index, part in enumerate(content))
    return {"role": role, "content": content}


def _part_text(path: str, part: object) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise invalid_value(path, "a part of the type text", part)
    return str(part["text"])


def _completion(result: TextResult, job: ChatJob) -> dict[str, Any]:
    message = AssistantMessage(content=result.text)
    return Completion(
        id=job.id,
        created=int(time.time()),
        model=job.model,
        choices=[Choice(message=message, finish_reason=_finish_reason(result))],
        usage=_usage(result),
    ).model_dump(mode="json")


def _finish_reason(result: TextResult) -> Literal["stop", "length"]:
    """The reason in that API, which knows no deadlines: a text that was cut off is one of limited length."""
    return "stop" if result.finish_reason == "stop" else "length"


def _usage(result: TextResult) -> Usage | None:
    prompt, generated = result.metadata.get("prompt_tokens"), result.metadata.get("tokens_generated")
    if prompt is None or generated is None:
        return None
    return Usage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)


class _ChunkEncoder:
    """Encodes a text stream as `chat.completion.chunk` events."""

    def __init__(self, job: ChatJob, *, with_usage: bool) -> None:
        self._with_usage = with_usage
        self._first_delta: dict[str, Any] = {"role": "assistant", "content": ""}
        self._common = {
            "id": job.id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": job.model,
            **({"usage": None} if with_usage else {}),
        }

    def encode(self, item: str | TextResult) -> Iterator[bytes]:
        """The events of a part of the text, or of the result: the last chunk, the usage, `[DONE]`."""
        if isinstance(item, str):
            yield self._chunk({"content": item})
            return
        yield self._chunk({}, _finish_reason(item))
        if self._with_usage:
            usage = _usage(item)
            yield sse.encode_json_event(
                {**self._common, "choices": [], "usage": usage.model_dump() if usage else None}
            )
        yield sse.encode_event(DONE)

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {
            "index": 0,
            "delta": self._first_delta | delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        self._first_delta = {}
        return sse.encode_json_event({**self._common, "choices": [choice]})


def _encode_error(request: Request, error: OurvidzError) -> bytes:
    audit.entry(request.scope).code = error.code
    return sse.encode_json_event(openai_errors.document(error).model_dump())
