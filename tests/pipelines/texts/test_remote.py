"""Texts from a server with the OpenAI API; the tests start one that runs the packaged model."""

from __future__ import annotations

import gc
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest

from ourvidz.errors import InvalidParameters, ModelLoadError, OurvidzError, PolicyViolation, WorkerUnavailable
from ourvidz.jobs.job import ChatJob, Message
from ourvidz.pipelines.base import BatchDecoder, TextDelta
from ourvidz.pipelines.texts.checkpoint import QwenVariant
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.pipelines.texts.remote import RemoteTextPipeline, TextServer
from ourvidz.prompts.encoder_texts import checked_by
from tests.factories import chat_job

LoadQwen = Callable[[QwenVariant], QwenPipeline]

TIMEOUT_S = 20.0
KEY = "key-of-the-server"
PARAMETERS = ("max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed")


class OpenAIServer(ThreadingHTTPServer):
    """Serves a pipeline. While `hold` is set, streams stop after their first token. `disconnects` counts
    closed connections. `error_status` answers every completion with that status."""

    daemon_threads = True

    def __init__(self, pipeline: QwenPipeline) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pipeline = pipeline
        self.lock = threading.Lock()
        self.hold = threading.Event()
        self.disconnects = threading.Semaphore(0)
        self.error_status: int | None = None
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


StartServer = Callable[[QwenVariant], OpenAIServer]


class _Handler(BaseHTTPRequestHandler):
    @property
    def openai_server(self) -> OpenAIServer:
        return cast(OpenAIServer, self.server)

    def log_message(self, *_: object) -> None:
        """Write nothing to the test's output."""

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._respond(401, {"error": {"message": "no key"}})
        elif self.path == "/v1/models":
            self._respond(200, {"object": "list", "data": [{"id": "tiny", "max_model_len": 2048}]})
        else:
            self._respond(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.openai_server
        if server.error_status:
            self._respond(server.error_status, {"error": {"message": "broken"}})
            return
        try:
            job = self._parse_job(body)
            decoder = server.pipeline.new_decoder()
            prompt_tokens = decoder.add("k", job)
        except InvalidParameters as error:
            self._respond(400, {"error": {"message": f"context length: {error}", "code": 400}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self._stream(decoder, prompt_tokens)
        except OSError:
            server.disconnects.release()

    def _stream(self, decoder: BatchDecoder, prompt_tokens: int) -> None:
        tokens_generated, finish_reason = 0, None
        while finish_reason is None:
            with self.openai_server.lock:
                (delta,) = decoder.step()
            tokens_generated, finish_reason = delta.tokens_generated, delta.finish_reason
            self._send_event({"choices": [self._choice(delta)], "usage": None})
            while self.openai_server.hold.is_set():
                self._send(b": keep-alive\n\n")
                time.sleep(0.01)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens_generated}
        self._send_event({"choices": [], "usage": usage})
        self._send(b"data: [DONE]\n\n")

    def _choice(self, delta: TextDelta) -> dict[str, Any]:
        is_chat = self.path.endswith("/chat/completions")
        content = {"delta": {"content": delta.text}} if is_chat else {"text": delta.text}
        return content | {"index": 0, "finish_reason": delta.finish_reason}

    def _parse_job(self, body: dict[str, Any]) -> ChatJob:
        assert body["stream"] is True
        assert body["model"] == "tiny"
        messages = body.get("messages") or [{"role": "user", "content": body["prompt"]}]
        return ChatJob(
            id="k",
            type="chat_conversation",
            expected_time=1,
            messages=tuple(Message(**message) for message in messages),
            stop=tuple(body.get("stop", ())),
            **{name: body[name] for name in PARAMETERS},
        )

    def _send_event(self, content: dict[str, Any]) -> None:
        self._send(b"data: " + json.dumps(content).encode() + b"\n\n")

    def _send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def _respond(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def start_server(qwen: LoadQwen) -> Iterator[StartServer]:
    """Starts servers for a variant, and stops them after the test."""
    started: list[tuple[OpenAIServer, threading.Thread]] = []

    def start(variant: QwenVariant) -> OpenAIServer:
        server = OpenAIServer(qwen(variant))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.hold.clear()
        server.shutdown()
        server.server_close()
        thread.join()


def connect(server: OpenAIServer, variant: QwenVariant = "instruct", **changes: Any) -> RemoteTextPipeline:
    return RemoteTextPipeline(TextServer(**({"url": server.url, "key": KEY} | changes)), variant)


def decode(decoder: BatchDecoder, *keys: str) -> dict[str, list[TextDelta]]:
    """All deltas of these texts, to their ends."""
    deltas: dict[str, list[TextDelta]] = {key: [] for key in keys}
    deadline = time.monotonic() + TIMEOUT_S
    while not all(text and (text[-1].finish_reason or text[-1].error) for text in deltas.values()):
        assert time.monotonic() < deadline
        for delta in decoder.step():
            deltas[delta.key].append(delta)
    return deltas


def text_of(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def error_of(decoder: BatchDecoder, job: ChatJob) -> OurvidzError:
    """The error that ends the text of a job."""
    decoder.add("a", job)
    error = decode(decoder, "a")["a"][-1].error
    assert error is not None
    return error


def decode_locally(pipeline: QwenPipeline, job: ChatJob) -> str:
    decoder = pipeline.new_decoder()
    decoder.add("k", job)
    return text_of(decode(decoder, "k")["k"])


@pytest.mark.parametrize("variant", ["instruct", "base"])
def test_a_remote_text_equals_the_local_one(
    start_server: StartServer, qwen: LoadQwen, variant: QwenVariant
) -> None:
    """Moving the model to another machine changes neither texts nor counts nor finish reasons."""
    decoder = connect(start_server(variant), variant).new_decoder()
    jobs = {
        "greedy": chat_job("a small star", system="Be brief."),
        "sampled": chat_job("a fox in the forest", temperature=0.9, seed=3, frequency_penalty=0.4),
        "cut": chat_job("a hill under a cloud", max_tokens=4),
        "stopped": chat_job("a yellow square", stop=(",",)),
    }
    for key, job in jobs.items():
        assert decoder.add(key, job) == 0
    deltas = decode(decoder, *jobs)
    for key, job in jobs.items():
        local = qwen(variant).new_decoder()
        prompt_tokens = local.add("k", job)
        expected = decode(local, "k")["k"]
        assert text_of(deltas[key]) == text_of(expected)
        last = deltas[key][-1]
        assert last.finish_reason == expected[-1].finish_reason
        assert last.tokens_generated == expected[-1].tokens_generated
        assert last.prompt_tokens == prompt_tokens
    assert decoder.step() == []


def test_text_is_streamed(start_server: StartServer) -> None:
    """The first delta arrives while the rest is being generated."""
    server = start_server("instruct")
    server.hold.set()
    decoder = connect(server).new_decoder()
    decoder.add("a", chat_job())
    deadline = time.monotonic() + TIMEOUT_S
    while not (first := decoder.step()):
        assert time.monotonic() < deadline
    assert first[0].text
    assert first[0].finish_reason is None
    server.hold.clear()
    assert decode(decoder, "a")["a"][-1].finish_reason == "stop"


def test_a_step_returns_without_deltas_if_none_arrive(start_server: StartServer) -> None:
    """The caller checks cancellations and deadlines between steps."""
    server = start_server("instruct")
    server.hold.set()
    decoder = connect(server).new_decoder()
    decoder.add("a", chat_job())
    deadline = time.monotonic() + TIMEOUT_S
    while decoder.step():
        assert time.monotonic() < deadline


@pytest.mark.parametrize("how", ["remove", "drop"])
def test_removing_a_text_or_dropping_the_decoder_disconnects(start_server: StartServer, how: str) -> None:
    """A closed connection stops the server's generation."""
    server = start_server("instruct")
    server.hold.set()
    decoder = connect(server).new_decoder()
    decoder.add("a", chat_job())
    while not decoder.step():
        pass
    if how == "remove":
        decoder.remove("a")
        decoder.remove("a")
        assert decoder.step() == []
    else:
        del decoder
        gc.collect()
    assert server.disconnects.acquire(timeout=TIMEOUT_S)


def test_removing_a_text_does_not_affect_the_others(start_server: StartServer, qwen: LoadQwen) -> None:
    """Each has its own connection. Its key can be used again at once."""
    decoder = connect(start_server("instruct")).new_decoder()
    decoder.add("a", chat_job())
    decoder.add("b", chat_job("a small star"))
    with pytest.raises(ValueError, match="a is in"):
        decoder.add("a", chat_job())
    decoder.remove("a")
    decoder.add("a", chat_job("a fox in the forest"))
    deltas = decode(decoder, "a", "b")
    assert text_of(deltas["a"]) == decode_locally(qwen("instruct"), chat_job("a fox in the forest"))
    assert text_of(deltas["b"]) == decode_locally(qwen("instruct"), chat_job("a small star"))


def test_a_text_that_exceeds_the_context_fails_alone(start_server: StartServer) -> None:
    """The server checks the limit; the error names the field."""
    decoder = connect(start_server("instruct")).new_decoder()
    decoder.add("fits", chat_job())
    decoder.add("long", chat_job(max_tokens=2048))
    deltas = decode(decoder, "fits", "long")
    error = deltas["long"][-1].error
    assert isinstance(error, InvalidParameters)
    assert error.field == "messages"
    assert deltas["fits"][-1].finish_reason == "stop"


def test_a_server_error_is_a_retryable_error(start_server: StartServer) -> None:
    """The same request may succeed later."""
    server = start_server("instruct")
    decoder = connect(server).new_decoder()
    server.error_status = 500
    assert isinstance(error_of(decoder, chat_job()), WorkerUnavailable)
    server.error_status = None
    decoder.add("a", chat_job())
    assert decode(decoder, "a")["a"][-1].finish_reason == "stop"


def test_a_lost_connection_is_a_retryable_error() -> None:
    """A partial text must not look complete."""

    def serve_once(response: bytes) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(response)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        pipeline = RemoteTextPipeline(TextServer(url, "tiny"), "instruct")
        listing = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"data": []}'
        partial = b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [{"delta": {"content": "a"}}]}\n\n'
        for response in (listing, partial):
            threading.Thread(target=serve_once, args=(response,), daemon=True).start()
            if response == listing:
                decoder = pipeline.new_decoder()
        decoder.add("a", chat_job())
        deltas = decode(decoder, "a")["a"]
    assert text_of(deltas) == "a"
    assert isinstance(deltas[-1].error, WorkerUnavailable)
    error = error_of(decoder, chat_job())
    assert isinstance(error, WorkerUnavailable)
    assert "reached" in error.message


def test_info_shows_the_server_s_model_and_not_the_key(start_server: StartServer) -> None:
    """An operator sees where texts come from."""
    server = start_server("instruct")
    pipeline = connect(server)
    assert (pipeline.info()["loaded"], pipeline.info()["name"]) == (False, None)
    pipeline.load()
    pipeline.load()
    info = pipeline.info()
    assert (info["loaded"], info["name"], info["context_length"]) == (True, "tiny", 2048)
    assert (info["inference_engine"], info["device"]) == ("openai", f"127.0.0.1:{server.server_port}")
    assert KEY not in str(info)
    pipeline.unload()
    assert pipeline.info()["loaded"] is False


def test_a_wrong_key_or_url_is_reported_before_the_first_job(start_server: StartServer) -> None:
    """And so is a server that does not run."""
    server = start_server("instruct")
    with pytest.raises(ModelLoadError, match="401"):
        connect(server, key="wrong").load()
    with pytest.raises(ModelLoadError, match="404"):
        connect(server, url=server.url + "/elsewhere").load()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free_port = listener.getsockname()[1]
    with pytest.raises(WorkerUnavailable, match="reached"):
        connect(server, url=f"http://127.0.0.1:{free_port}/v1").load()


@pytest.mark.parametrize("variant", ["instruct", "base"])
def test_what_a_server_is_sent_is_handed_over(start_server: StartServer, variant: QwenVariant) -> None:
    """Its template is the server's; the messages are judged as they are sent."""
    decoder = connect(start_server(variant), variant).new_decoder()

    def refuse(texts: tuple[str, ...]) -> None:
        assert texts == ("Hills?",)
        raise PolicyViolation("no")

    with pytest.raises(PolicyViolation), checked_by(refuse):
        decoder.add("a", chat_job("Hills?"))
    assert decoder.step() == []
