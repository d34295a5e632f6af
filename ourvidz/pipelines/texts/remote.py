"""Texts from a server with the OpenAI API: vLLM, SGLang, llama.cpp and others.

The server does batching, sampling and context limits. Each text is one streamed request on its own thread;
closing the connection stops the generation.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import Any

from ourvidz import log
from ourvidz.errors import ModelLoadError, OurvidzError, WorkerUnavailable
from ourvidz.jobs.job import ChatJob
from ourvidz.net.client import HttpClient, RequestFailure
from ourvidz.net.stream import EventStream, StreamBroken, StreamRefused
from ourvidz.net.urls import origin
from ourvidz.pipelines.base import BatchDecoder, TextDelta
from ourvidz.pipelines.texts import openai_protocol
from ourvidz.pipelines.texts.checkpoint import QwenVariant
from ourvidz.prompts.encoder_texts import hand_over

ENGINE = "openai"
"""`inference_engine` of a remote model."""
STEP_WAIT_S = 0.05
"""How long a step waits for the first delta: between steps the caller checks cancellations and deadlines."""
LIST_MODELS_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 3600.0
"""Upper limit of one request; the job's own time limit is much shorter."""

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class TextServer:
    """A server with the OpenAI API. `url` usually ends in `/v1`. `model` None selects its first model."""

    url: str
    model: str | None = None
    key: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The authorization header of every request; empty without a key."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def url_of(self, path: str) -> str:
        """The URL of a path below `url`."""
        return self.url.rstrip("/") + path


class RemoteTextPipeline:
    """A model on a remote server; implements `TextPipeline`. The variant `instruct` uses chat completions,
    with the server's chat template, `base` text completions."""

    def __init__(self, server: TextServer, variant: QwenVariant) -> None:
        self.server = server
        self.variant = variant
        self.load_s: float | None = None
        self._model: str | None = None
        self._context_length: int | None = None

    def load(self) -> None:
        """Request the server's list of models. Idempotent. Raises `ModelLoadError`, or `WorkerUnavailable` if
        the server may answer later."""
        if self._model is not None:
            return
        started = time.perf_counter()
        models = self._list_models()
        name = self.server.model or next((str(model["id"]) for model in models if model.get("id")), None)
        if name is None:
            raise ModelLoadError(f"The server at {self._netloc} lists no model.")
        self._model, self._context_length = name, openai_protocol.context_length(models, name)
        self.load_s = round(time.perf_counter() - started, 3)
        _log.info("remote_texts_found", **self.info())

    def unload(self) -> None:
        """Forget the server's model, so that `load` requests the list again. Idempotent."""
        self._model = None

    def info(self) -> dict[str, Any]:
        """The model and its server. `context_length` is tokens, None if the server does not report it."""
        return {
            "name": self._model or self.server.model,
            "kind": "remote",
            "variant": self.variant,
            "inference_engine": ENGINE,
            "loaded": self._model is not None,
            "device": self._netloc,
            "dtype": None,
            "context_length": self._context_length,
            "load_seconds": self.load_s,
            "memory_mib": 0,
        }

    def new_decoder(self) -> BatchDecoder:
        """A decoder with no texts in it."""
        self.load()
        return RemoteBatchDecoder(self.server, str(self._model), plain=self.variant == "base")

    @property
    def _netloc(self) -> str:
        server_origin = origin(self.server.url)
        return "nowhere" if server_origin is None else server_origin.netloc

    def _list_models(self) -> list[Any]:
        client = HttpClient(timeout_s=LIST_MODELS_TIMEOUT_S)
        response = client.get(self.server.url_of("/models"), headers=self.server.headers)
        if isinstance(response, RequestFailure):
            _log.warning("text_server_away", server=self._netloc, reason=response.reason)
            raise WorkerUnavailable("The language model's server cannot be reached.")
        if openai_protocol.is_transient(response.status):
            raise WorkerUnavailable(
                f"The language model's server is not available: it answers {response.status}."
            )
        if response.status != 200:
            raise ModelLoadError(
                f"The server at {self._netloc} answers {response.status} when asked for its models."
            )
        try:
            return list(openai_protocol.parse_models(response.body))
        except ValueError as error:
            raise ModelLoadError(f"The server at {self._netloc} does not list its models.") from error


class RemoteBatchDecoder:
    """Concurrent streamed requests; implements `BatchDecoder`. Not thread-safe.

    A step returns the deltas that arrived since the last one: several for one text, or none.
    """

    def __init__(self, server: TextServer, model: str, *, plain: bool) -> None:
        self._server = server
        self._model = model
        self._plain = plain
        self._requests: dict[str, _StreamedRequest] = {}
        self._deltas: queue.SimpleQueue[tuple[_StreamedRequest, TextDelta]] = queue.SimpleQueue()
        # If the decoder is dropped while texts are unfinished, the server must stop generating.
        weakref.finalize(self, _close_all, self._requests)

    def add(self, key: str, job: ChatJob) -> int:
        """Start a request for a text. Returns 0: the server counts the prompt tokens, and a delta reports
        them. Raises `ValueError` for a key that is in use."""
        if key in self._requests:
            raise ValueError(f"{key} is in this batch already")
        path, body = openai_protocol.build_request(job, self._model, plain=self._plain)
        hand_over([body["prompt"]] if self._plain else [message["content"] for message in body["messages"]])
        stream = EventStream(
            self._server.url_of(path),
            body=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **self._server.headers},
            timeout_s=REQUEST_TIMEOUT_S,
        )
        request = self._requests[key] = _StreamedRequest(key, job, stream, self._deltas)
        threading.Thread(target=request.run, name=f"text-{key}", daemon=True).start()
        return 0

    def step(self) -> list[TextDelta]:
        """The deltas that have arrived; waits up to `STEP_WAIT_S` for the first one. A request that fails
        ends its text with a delta that has an `error`."""
        if not self._requests:
            return []
        deltas: list[TextDelta] = []
        wait_s = STEP_WAIT_S
        try:
            while True:
                request, delta = self._deltas.get(timeout=wait_s) if wait_s else self._deltas.get_nowait()
                if self._requests.get(delta.key) is not request:
                    continue  # of a text that was removed
                deltas.append(delta)
                wait_s = 0.0
                if delta.finish_reason or delta.error:
                    del self._requests[delta.key]
        except queue.Empty:
            return deltas

    def remove(self, key: str) -> None:
        """Close the text's connection. Idempotent."""
        request = self._requests.pop(key, None)
        if request is not None:
            request.stream.close()


class _StreamedRequest:
    """The request for one text. `run` reads its stream and puts the deltas into a queue."""

    def __init__(
        self,
        key: str,
        job: ChatJob,
        stream: EventStream,
        deltas: queue.SimpleQueue[tuple[_StreamedRequest, TextDelta]],
    ) -> None:
        self.stream = stream
        self._key = key
        self._job = job
        self._deltas = deltas
        self._tokens_generated = 0

    def run(self) -> None:
        """Read the stream to its end. Every exception becomes a delta with an `error`."""
        try:
            self._read_stream()
        except Exception as error:  # noqa: BLE001  ends this text; the decoder's caller handles the error
            self._put(TextDelta(self._key, "", self._tokens_generated, error=self._to_public_error(error)))

    def _to_public_error(self, error: Exception) -> OurvidzError:
        if isinstance(error, OurvidzError):
            return error
        if isinstance(error, StreamRefused):
            _log.warning("text_refused", status=error.response.status)
            return openai_protocol.error_for_status(error.response.status, error.response.body, self._job)
        if isinstance(error, StreamBroken):
            return WorkerUnavailable(f"The language model's server cannot be reached: {error}.")
        _log.error("text_unreadable", exc_info=error)
        return WorkerUnavailable("What the language model's server said cannot be read.")

    def _read_stream(self) -> None:
        """Put a text delta into the queue for each event. `WorkerUnavailable` for a truncated stream."""
        finish_reason, prompt_tokens = None, None
        for data in self.stream.events():
            if data == openai_protocol.DONE:
                break
            event = openai_protocol.parse_event(data, self._job)
            # Until the server reports its count, every event with text counts as one token.
            self._tokens_generated = event.tokens_generated or self._tokens_generated + bool(event.text)
            finish_reason = event.finish_reason or finish_reason
            prompt_tokens = event.prompt_tokens or prompt_tokens
            if event.text:
                self._put(TextDelta(self._key, event.text, self._tokens_generated))
        if finish_reason is None:
            raise WorkerUnavailable("The language model's server stopped before the text was at its end.")
        self._put(
            TextDelta(self._key, "", self._tokens_generated, finish_reason, prompt_tokens=prompt_tokens)
        )

    def _put(self, delta: TextDelta) -> None:
        self._deltas.put((self, delta))


def _close_all(requests: dict[str, _StreamedRequest]) -> None:
    for request in list(requests.values()):
        request.stream.close()
