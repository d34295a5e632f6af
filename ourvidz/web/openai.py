"""Chat as the OpenAI API has it, so that its clients need only another base URL."""

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
from ourvidz.jobs.fields import Fields, refused
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.ranges import MAX_TOKENS
from ourvidz.jobs.sanitize import shorten
from ourvidz.jobs.schema import conversation_schema
from ourvidz.web import audit, chat, openai_errors, sse
from ourvidz.web.body import read_json
from ourvidz.web.openai_errors import ErrorDocument
from ourvidz.web.waiting import Answer, answer_of, as_events, begun, unless_gone, wait_for
from ourvidz.wiring import control

router = APIRouter(tags=["openai"])

TYPE = "chat_conversation"
DONE = "[DONE]"
"""The data of the event that ends a stream."""
LENGTHS = ("max_completion_tokens", "max_tokens")
_PASSED = (
    *("model", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "stream"),
    *("sfw_mode", "content_tier", "unrestricted_mode", "callback_url", "user_id"),
)
_UNSUPPORTED = ("tools", "functions", "logprobs", "logit_bias", "audio")
"""What would change an answer, and cannot be done here: better refused than left out in silence."""
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorDocument} for status in (400, 401, 403, 404, 413, 500, 503, 504)
}
MODEL_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorDocument} for status in (401, 403)}


class Said(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one answer."""

    index: Literal[0] = 0
    message: Said
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """A chat completion. `GET /jobs/{id}` shows the job behind it; `usage` is null when time was up."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None


class ModelCard(BaseModel):
    """One model; `created` is when its worker started, 0 when none is here."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["ourvidz"] = "ourvidz"


class ModelList(BaseModel):
    """The models there are."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def _body() -> dict[str, Any]:
    known = conversation_schema()["properties"]
    properties: dict[str, Any] = {name: known[name] for name in ("messages", *_PASSED) if name in known}
    more = {
        "max_completion_tokens": known["max_tokens"],
        "max_tokens": known["max_tokens"],
        "n": {"enum": [1, None]},
        "stream_options": {
            "type": ["object", "null"],
            "properties": {"include_usage": {"type": ["boolean", "null"]}},
        },
    }
    schema = {"type": "object", "required": ["messages"], "properties": properties | more}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


CHUNK: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "A chat.completion.chunk, or [DONE]."}},
}


@router.post(
    "/v1/chat/completions",
    response_model=Completion,
    responses={200: {"content": {"text/event-stream": {"itemSchema": CHUNK}}}, **ERRORS},
    openapi_extra=_body(),
)
async def completions(request: Request) -> Response:
    """Continue a conversation."""
    body = await read_json(request)
    payload = _payload(body)
    job = await run_in_threadpool(chat.parse_request, request, payload, TYPE, prefix="chatcmpl-")
    heard = wait_for(job)
    if job.stream:
        chunks = _Chunks(job, with_usage=_wants_usage(body))
        events = await begun(request, as_events(heard, chunks, partial(_failure, request)))
        return sse.EventStreamResponse(events, {"X-Job-Id": job.id})
    answer = await unless_gone(request, lambda: answer_of(heard))
    return JSONResponse(_completion(answer, job))


@router.get("/v1/models", responses={**MODEL_ERRORS, 503: {"model": ErrorDocument}})
def models() -> ModelList:
    """The models that can be named."""
    return ModelList(data=_cards())


@router.get(
    "/v1/models/{model}",
    response_model=ModelCard,
    responses={**MODEL_ERRORS, 404: {"model": ErrorDocument}, 503: {"model": ErrorDocument}},
    openapi_extra={
        "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    },
)
async def model(request: Request) -> ModelCard:
    """One of them."""
    # Not a parameter: the framework would announce a 422 that this API does not have.
    name = _known(request.path_params["model"])
    return next(card for card in await run_in_threadpool(_cards) if card.id == name)


def _cards() -> list[ModelCard]:
    workers = control.current().ledger.workers()
    started = [
        worker.started_at for worker in workers if worker.family == "chat" and worker.state != "offline"
    ]
    return [ModelCard(id=name, created=int(min(started, default=0))) for name in MODELS]


def _known(name: object) -> str:
    if name not in MODELS:
        raise NotFound(f"The model {shorten(name)!r} does not exist.", field="model", value=name)
    return str(name)


def _payload(body: object) -> dict[str, Any]:
    """A request of that API in our own words. `InvalidParameters` for what cannot be done here."""
    fields = Fields(body)
    assert isinstance(body, dict)
    fields.one_of("n", numbers=(1,))
    for name in _UNSUPPORTED:
        if body.get(name):
            raise InvalidParameters(f"{name} is not supported.", field=name, rule="not given")
    _plain_text_only(body.get("response_format"))
    payload = {name: body[name] for name in _PASSED if name in body}
    asked = fields.first("model")
    if asked is not None:
        payload["model"] = _known(asked.value)
    length = fields.integer(*LENGTHS, within=MAX_TOKENS)
    if length is not None:
        payload["max_tokens"] = length
    return {**payload, "messages": _messages(body.get("messages"))}


def _plain_text_only(wanted: object) -> None:
    if wanted is not None and (not isinstance(wanted, dict) or wanted.get("type") != "text"):
        raise refused("response_format", 'of the type "text"', wanted)


def _wants_usage(body: Any) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _messages(given: object) -> list[Any]:
    """The conversation with every content as one text; whatever is wrong with it is left for the parser."""
    if not isinstance(given, list) or not given:
        raise refused("messages", "a list of messages", given)
    return [_message(f"messages[{at}]", item) for at, item in enumerate(given)]


def _message(path: str, item: object) -> object:
    if not isinstance(item, dict):
        return item
    role = "system" if item.get("role") == "developer" else item.get("role")
    content = item.get("content")
    if isinstance(content, list):
        content = "".join(_part(f"{path}.content[{at}]", part) for at, part in enumerate(content))
    return {"role": role, "content": content}


def _part(path: str, part: object) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise refused(path, "a part of the type text", part)
    return str(part["text"])


def _completion(answer: Answer, job: ChatJob) -> dict[str, Any]:
    return Completion(
        id=job.id,
        created=int(time.time()),
        model=job.model,
        choices=[Choice(message=Said(content=answer.text), finish_reason=_finish(answer))],
        usage=_usage(answer),
    ).model_dump(mode="json")


def _finish(answer: Answer) -> Literal["stop", "length"]:
    """That API knows no time limits: an answer that was cut short is one that grew too long."""
    return "stop" if answer.finish_reason == "stop" else "length"


def _usage(answer: Answer) -> Usage | None:
    prompt, made = answer.told.get("prompt_tokens"), answer.told.get("tokens_generated")
    if prompt is None or made is None:
        return None
    return Usage(prompt_tokens=prompt, completion_tokens=made, total_tokens=prompt + made)


class _Chunks:
    """Writes an answer in chunks."""

    def __init__(self, job: ChatJob, *, with_usage: bool) -> None:
        self._with_usage = with_usage
        self._opening: dict[str, Any] = {"role": "assistant", "content": ""}
        self._common = {
            "id": job.id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": job.model,
            **({"usage": None} if with_usage else {}),
        }

    def __call__(self, item: str | Answer) -> Iterator[bytes]:
        if isinstance(item, str):
            yield self._chunk({"content": item})
            return
        yield self._chunk({}, _finish(item))
        if self._with_usage:
            usage = _usage(item)
            yield sse.encode_json_event(
                {**self._common, "choices": [], "usage": usage.model_dump() if usage else None}
            )
        yield sse.encode_event(DONE)

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": self._opening | delta, "logprobs": None, "finish_reason": finish}
        self._opening = {}
        return sse.encode_json_event({**self._common, "choices": [choice]})


def _failure(request: Request, error: OurvidzError) -> bytes:
    audit.entry(request.scope).code = error.code
    return sse.encode_json_event(openai_errors.document(error).model_dump())
