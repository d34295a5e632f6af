"""Synchronous routes for conversations and prompt enhancement."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from ourvidz import log
from ourvidz.errors import CallerError, JobTimeout, OurvidzError
from ourvidz.jobs.catalog import CATALOG, JobType, lookup
from ourvidz.jobs.fields import Fields, invalid_value
from ourvidz.jobs.job import ChatJob
from ourvidz.jobs.schema import conversation_schema
from ourvidz.web import access, audit, problems, sse
from ourvidz.web.body import read_json
from ourvidz.web.problems import documented
from ourvidz.web.rate_limits import limits_of, open_streams
from ourvidz.web.synchronous import (
    TextResult,
    TextStream,
    await_first_event,
    cancel_on_disconnect,
    encode_events,
    read_result,
    stream_text,
)

router = APIRouter(tags=["chat"])

ENHANCE = "chat_enhance"
_CHAT_TYPES = tuple(row.name for row in CATALOG.values() if row.kind == "chat")
_TYPE_FIELDS = ("config.job_type", "job_type", "type")
_DROPPED_FIELDS = ("id", "job_id", "job_type")
EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["token", "done", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
ROUTE_OPTIONS: dict[str, Any] = {
    "responses": {
        200: {"content": {"text/event-stream": {"itemSchema": EVENT}}},
        **documented(401, 403, 413, 422, 500, 503, 504),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": conversation_schema()}},
        }
    },
}
_log = log.get(__name__)


class ModelUsed(BaseModel):
    """The model that wrote a text. `inference_engine` is null when the deadline cut the text off."""

    model_name: str
    inference_engine: str | None
    active_model_type: str


class SynchronousAnswer(BaseModel):
    """Fields of every synchronous answer; times are in seconds. `GET /jobs/{job_id}` returns the job."""

    success: Literal[True] = True
    generation_time: float
    tokens_generated: int
    finish_reason: Literal["stop", "length", "timeout", "error"]
    job_id: str
    model_info: ModelUsed
    sfw_mode: bool
    content_tier: Any
    unrestricted_mode: bool


class ChatAnswer(SynchronousAnswer):
    """The next message of a conversation."""

    response: str


class Enhanced(SynchronousAnswer):
    """An enhanced prompt, written by `qwen`; or the original as a `fallback`, with the reason."""

    enhanced_prompt: str
    enhancement_strategy: Literal["qwen", "fallback"]
    enhancement_reason: str | None


@router.post("/chat", response_model=ChatAnswer, **ROUTE_OPTIONS)
async def chat(request: Request) -> Response:
    """Continue a conversation and wait for the text."""
    return await _respond(request, "chat_conversation")


@router.post("/chat/unrestricted", response_model=ChatAnswer, **ROUTE_OPTIONS)
async def chat_unrestricted(request: Request) -> Response:
    """Continue a conversation as a job of the type `chat_unrestricted`."""
    return await _respond(request, "chat_unrestricted")


@router.post("/generate", response_model=ChatAnswer, **ROUTE_OPTIONS)
async def generate(request: Request) -> Response:
    """Continue a conversation as a job of the type in `config.job_type`."""
    return await _respond(request, "chat_conversation")


@router.post("/enhance/legacy", response_model=Enhanced, **ROUTE_OPTIONS)
@router.post("/enhance", response_model=Enhanced, **ROUTE_OPTIONS)
async def enhance(request: Request) -> Response:
    """Enhance a prompt. If that fails through no fault of the caller, the original is returned."""
    return await _respond(request, ENHANCE)


async def _respond(request: Request, type_name: str) -> Response:
    """Run a text job of this type; respond with its document, or with events if the body asks to stream."""
    payload = await read_json(request)
    job = await run_in_threadpool(parse_request, request, payload, type_name)
    enhancing = type_name == ENHANCE
    stream = stream_text(job, limits_of(request))
    if enhancing:
        stream = _with_fallback(stream, job)
    if job.stream:
        open_streams.open(request)

        def encode_item(item: str | TextResult) -> Iterator[bytes]:
            if isinstance(item, TextResult):
                yield sse.encode_json_event(_document(item, job, enhancing=enhancing), event="done")
            else:
                yield sse.encode_json_event({"text": item}, event="token")

        def encode_error(error: OurvidzError) -> bytes:
            audit.entry(request.scope).code = error.code
            document = problems.document(error, request.url.path).model_dump(mode="json")
            return sse.encode_json_event(document, event="error")

        events = await await_first_event(request, encode_events(stream, encode_item, encode_error))
        return sse.EventStreamResponse(events, {"X-Job-Id": job.id})
    result = await cancel_on_disconnect(request, lambda: read_result(stream))
    return JSONResponse(_document(result, job, enhancing=enhancing))


def parse_request(request: Request, payload: object, type_name: str, *, prefix: str = "") -> ChatJob:
    """The text job that a body describes. Its id is generated, after `prefix`. Raises `CallerError`."""
    row = _job_type(Fields(payload), type_name)
    assert isinstance(payload, dict)
    fields = {name: value for name, value in payload.items() if name not in _DROPPED_FIELDS}
    payload = {**fields, "type": row.name}
    job = access.parse_job(request, payload, make_id=lambda: f"{prefix}{uuid.uuid4().hex}")
    assert isinstance(job, ChatJob)
    audit.entry(request.scope).set_job(job)
    return job


def _job_type(fields: Fields, type_name: str) -> JobType:
    """The job type in the body, else `type_name`.

    The body of an enhancement names the type that the prompt is for, which is checked and ignored.
    """
    field = fields.first(*_TYPE_FIELDS)
    row = lookup(field.value) if field and isinstance(field.value, str) else None
    if field is not None and type_name == ENHANCE:
        if row is None:
            raise invalid_value(field.path, f"one of {', '.join(CATALOG)}", field.value)
    elif field is not None and (row is None or row.kind != "chat"):
        raise invalid_value(field.path, f"one of {', '.join(_CHAT_TYPES)}", field.value)
    return row if row is not None and type_name != ENHANCE else CATALOG[type_name]


async def _with_fallback(stream: TextStream, job: ChatJob) -> TextStream:
    """Yield an enhancement's stream; after an error other than the caller's, the original prompt ends it."""
    started = time.monotonic()
    result: TextResult | None = None
    reason: str | None = None
    async with aclosing(stream):
        try:
            async for item in stream:
                if isinstance(item, TextResult):
                    result = item
                else:
                    yield item
        except OurvidzError as error:
            timed_out = isinstance(error, JobTimeout)
            if isinstance(error, CallerError) and not timed_out:
                raise
            _log.warning("enhancement_failed", job_id=job.id, code=error.code)
            reason = error.message
            result = _empty_result(time.monotonic() - started, "timeout" if timed_out else "error")
    assert result is not None
    yield _enhancement(result, job, reason)


def _empty_result(duration_s: float, finish_reason: str) -> TextResult:
    metadata = {
        "generation_time": round(duration_s, 3),
        "tokens_generated": 0,
        "finish_reason": finish_reason,
    }
    return TextResult("", metadata)


def _enhancement(result: TextResult, job: ChatJob, reason: str | None) -> TextResult:
    """The result with its `enhanced_prompt`: the generated text without blanks around it, or the original.

    The original is used when there is a `reason`, when the deadline cut the text off, and for an empty text.
    """
    if result.is_fallback:
        return TextResult(result.text, result.metadata, result.enhanced_prompt or job.last_user_message)
    if reason is None and result.finish_reason == "timeout":
        reason = "The enhancement took too long."
    enhanced = (result.enhanced_prompt or result.text).strip()
    if reason is None and enhanced:
        return TextResult(result.text, {"enhancement_strategy": "qwen", **result.metadata}, enhanced)
    metadata = {
        **result.metadata,
        "enhancement_strategy": "fallback",
        "enhancement_reason": reason or "The model wrote nothing.",
    }
    return TextResult(result.text, metadata, job.last_user_message)


def _document(result: TextResult, job: ChatJob, *, enhancing: bool) -> dict[str, Any]:
    """The JSON document of an answer: `Enhanced` for an enhancement, else `ChatAnswer`."""
    metadata = result.metadata
    common: dict[str, Any] = {
        "generation_time": metadata.get("generation_time", 0.0),
        "tokens_generated": metadata.get("tokens_generated", 0),
        "finish_reason": result.finish_reason,
        "job_id": job.id,
        "model_info": _model_used(metadata, job),
        "sfw_mode": job.sfw_mode,
        "content_tier": job.flags.get("content_tier"),
        "unrestricted_mode": bool(job.flags.get("unrestricted_mode", False)),
    }
    if not enhancing:
        return ChatAnswer(**common, response=result.text).model_dump(mode="json")
    return Enhanced(
        **common,
        enhanced_prompt=result.enhanced_prompt or "",
        enhancement_strategy=metadata["enhancement_strategy"],
        enhancement_reason=metadata.get("enhancement_reason"),
    ).model_dump(mode="json")


def _model_used(metadata: Mapping[str, Any], job: ChatJob) -> ModelUsed:
    """The model of an answer, as its worker reported it, else as the job requests it."""
    return ModelUsed(
        model_name=metadata.get("model_name") or job.model,
        inference_engine=metadata.get("inference_engine"),
        active_model_type=metadata.get("active_model_type") or job.model.removeprefix("qwen_"),
    )
