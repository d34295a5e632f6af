"""Texts from a server that speaks the OpenAI API: vLLM, SGLang, llama.cpp and others.

Batching, sampling and the context's limit are the server's. Every text is one streamed request on a thread of
its own; to leave is to hang up, which is how such servers are told to stop.
"""

from __future__ import annotations

import json
import queue
import threading
import time
import weakref
from dataclasses import dataclass
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

ENGINE = "openai"
WAIT_S = 0.05
"""So long a step waits for the first piece: whoever drives it has cancels and deadlines to hear."""
LISTING_S = 10.0
LONGEST_S = 3600.0
"""After this a request is given up; a job's own time limit comes long before."""

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class TextServer:
    """Where texts come from. `url` ends in `/v1` with most servers; without a `model` its first is taken."""

    url: str
    model: str | None = None
    key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def at(self, path: str) -> str:
        """The URL of a path below it."""
        return self.url.rstrip("/") + path


class RemoteTextPipeline:
    """A model on somebody else's machine; implements `TextPipeline`.

    `instruct` asks for chat completions, which the server's own chat template makes a text of; `base` for
    plain completions.
    """

    def __init__(self, server: TextServer, variant: QwenVariant) -> None:
        self.server = server
        self.variant = variant
        self.load_s: float | None = None
        self._model: str | None = None
        self._context: int | None = None

    def load(self) -> None:
        """Ask the server for its models. Safe to call twice. `ModelLoadError` says what is wrong,
        `WorkerUnavailable` that it may answer later."""
        if self._model is not None:
            return
        started = time.perf_counter()
        models = self._listed()
        name = self.server.model or next((str(model["id"]) for model in models if model.get("id")), None)
        if name is None:
            raise ModelLoadError(f"The server at {self._place} lists no model.")
        self._model, self._context = name, openai_protocol.context_length(models, name)
        self.load_s = round(time.perf_counter() - started, 3)
        _log.info("remote_texts_found", **self.info())

    def unload(self) -> None:
        """Forget what the server said. Safe to call twice."""
        self._model = None

    def info(self) -> dict[str, Any]:
        """What there is and where. `context_length` is tokens, None where the server does not tell."""
        return {
            "name": self._model or self.server.model,
            "kind": "remote",
            "variant": self.variant,
            "inference_engine": ENGINE,
            "loaded": self._model is not None,
            "device": self._place,
            "dtype": None,
            "context_length": self._context,
            "load_seconds": self.load_s,
            "memory_mib": 0,
        }

    def new_decoder(self) -> BatchDecoder:
        """A new batch with no texts in it."""
        self.load()
        return RemoteBatchDecoder(self.server, str(self._model), plain=self.variant == "base")

    @property
    def _place(self) -> str:
        found = origin(self.server.url)
        return "nowhere" if found is None else found.netloc

    def _listed(self) -> list[Any]:
        answer = HttpClient(timeout_s=LISTING_S).get(self.server.at("/models"), headers=self.server.headers)
        if isinstance(answer, RequestFailure):
            _log.warning("text_server_away", server=self._place, reason=answer.reason)
            raise WorkerUnavailable("The language model's server cannot be reached.")
        if openai_protocol.passes(answer.status):
            raise WorkerUnavailable(
                f"The language model's server is not available: it answers {answer.status}."
            )
        if answer.status != 200:
            raise ModelLoadError(
                f"The server at {self._place} answers {answer.status} when asked for its models."
            )
        try:
            return list(openai_protocol.listed(answer.body))
        except ValueError as broken:
            raise ModelLoadError(f"The server at {self._place} does not list its models.") from broken


class RemoteBatchDecoder:
    """Requests that run side by side; implements `BatchDecoder`. One thread at a time.

    A step gives what has arrived since the last one, which may be several tokens of a text, or nothing.
    """

    def __init__(self, server: TextServer, model: str, *, plain: bool) -> None:
        self._server = server
        self._model = model
        self._plain = plain
        self._requests: dict[str, _Request] = {}
        self._arrived: queue.SimpleQueue[tuple[_Request, TextDelta]] = queue.SimpleQueue()
        # A batch that is dropped in the middle must not leave the server working.
        weakref.finalize(self, _hang_up, self._requests)

    def add(self, key: str, job: ChatJob) -> int:
        """Ask for one more text. 0: the server counts the prompt's tokens, and a piece tells. `ValueError`
        for a key that is in already."""
        if key in self._requests:
            raise ValueError(f"{key} is in this batch already")
        path, body = openai_protocol.asked(job, self._model, plain=self._plain)
        stream = EventStream(
            self._server.at(path),
            body=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **self._server.headers},
            timeout_s=LONGEST_S,
        )
        request = self._requests[key] = _Request(key, job, stream, self._arrived)
        threading.Thread(target=request.run, name=f"text-{key}", daemon=True).start()
        return 0

    def step(self) -> list[TextDelta]:
        """What has arrived, waited for a moment. A text that cannot go on is told by its piece's `error`."""
        if not self._requests:
            return []
        pieces: list[TextDelta] = []
        wait_s = WAIT_S
        try:
            while True:
                request, piece = self._arrived.get(timeout=wait_s) if wait_s else self._arrived.get_nowait()
                if self._requests.get(piece.key) is not request:
                    continue
                pieces.append(piece)
                wait_s = 0.0
                if piece.finish_reason or piece.error:
                    del self._requests[piece.key]
        except queue.Empty:
            return pieces

    def remove(self, key: str) -> None:
        """Hang up. Safe to call twice."""
        request = self._requests.pop(key, None)
        if request is not None:
            request.stream.close()


class _Request:
    """One text on its way."""

    def __init__(
        self, key: str, job: ChatJob, stream: EventStream, to: queue.SimpleQueue[tuple[_Request, TextDelta]]
    ) -> None:
        self.stream = stream
        self._key = key
        self._job = job
        self._to = to
        self._tokens = 0

    def run(self) -> None:
        """Pass on what comes, and how it ends."""
        try:
            self._follow()
        except Exception as failure:  # noqa: BLE001  whatever it is, it ends this text, and its driver hears so
            self._tell(TextDelta(self._key, "", self._tokens, error=self._error(failure)))

    def _error(self, failure: Exception) -> OurvidzError:
        if isinstance(failure, OurvidzError):
            return failure
        if isinstance(failure, StreamRefused):
            _log.warning("text_refused", status=failure.response.status)
            return openai_protocol.refusal(failure.response.status, failure.response.body, self._job)
        if isinstance(failure, StreamBroken):
            return WorkerUnavailable(f"The language model's server cannot be reached: {failure}.")
        _log.error("text_unreadable", exc_info=failure)
        return WorkerUnavailable("What the language model's server said cannot be read.")

    def _follow(self) -> None:
        finish, prompt_tokens = None, None
        for data in self.stream.events():
            if data == openai_protocol.DONE:
                break
            event = openai_protocol.read(data, self._job)
            # A guess, one token an event, until the server has counted.
            self._tokens = event.tokens or self._tokens + bool(event.text)
            finish, prompt_tokens = event.finish or finish, event.prompt_tokens or prompt_tokens
            if event.text:
                self._tell(TextDelta(self._key, event.text, self._tokens))
        if finish is None:
            raise WorkerUnavailable("The language model's server stopped before the text was at its end.")
        self._tell(TextDelta(self._key, "", self._tokens, finish, prompt_tokens=prompt_tokens))

    def _tell(self, piece: TextDelta) -> None:
        self._to.put((self, piece))


def _hang_up(requests: dict[str, _Request]) -> None:
    for request in list(requests.values()):
        request.stream.close()
