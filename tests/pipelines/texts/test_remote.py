"""Texts from a real server on this machine that speaks the OpenAI API; behind it is the model that ships."""

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

from ourvidz.errors import InvalidParameters, ModelLoadError, OurvidzError, WorkerUnavailable
from ourvidz.jobs.job import ChatJob, Message
from ourvidz.pipelines.base import BatchDecoder, TextDelta
from ourvidz.pipelines.texts.qwen import QwenPipeline
from ourvidz.pipelines.texts.remote import RemoteTextPipeline, TextServer

Load = Callable[[str], QwenPipeline]
Make = Callable[..., ChatJob]

PATIENCE_S = 20.0
KEY = "key-of-the-server"
ASKED = ("max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed")


class Inference(ThreadingHTTPServer):
    """Serves a pipeline. `hold` keeps streams after their first token, `gone` counts those hung up on."""

    daemon_threads = True

    def __init__(self, pipeline: QwenPipeline) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pipeline = pipeline
        self.one = threading.Lock()
        self.hold = threading.Event()
        self.gone = threading.Semaphore(0)
        self.broken: int | None = None
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    @property
    def at(self) -> Inference:
        return cast(Inference, self.server)

    def log_message(self, *_: object) -> None:
        """Nothing to a test's output."""

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._answer(401, {"error": {"message": "no key"}})
        elif self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": "tiny", "max_model_len": 2048}]})
        else:
            self._answer(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.at.broken:
            self._answer(self.at.broken, {"error": {"message": "broken"}})
            return
        try:
            job = self._job(body)
            decoder = self.at.pipeline.new_decoder()
            prompt_tokens = decoder.add("k", job)
        except InvalidParameters as refused:
            self._answer(400, {"error": {"message": f"context length: {refused}", "code": 400}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            self._stream(decoder, prompt_tokens)
        except OSError:
            self.at.gone.release()

    def _stream(self, decoder: BatchDecoder, prompt_tokens: int) -> None:
        tokens, finish = 0, None
        while finish is None:
            with self.at.one:
                (piece,) = decoder.step()
            tokens, finish = piece.tokens_generated, piece.finish_reason
            self._event({"choices": [self._choice(piece)], "usage": None})
            while self.at.hold.is_set():
                self._line(b": still there\n\n")
                time.sleep(0.01)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
        self._event({"choices": [], "usage": usage})
        self._line(b"data: [DONE]\n\n")

    def _choice(self, piece: TextDelta) -> dict[str, Any]:
        chat = self.path.endswith("/chat/completions")
        said = {"delta": {"content": piece.text}} if chat else {"text": piece.text}
        return said | {"index": 0, "finish_reason": piece.finish_reason}

    def _job(self, body: dict[str, Any]) -> ChatJob:
        assert body["stream"] is True
        assert body["model"] == "tiny"
        messages = body.get("messages") or [{"role": "user", "content": body["prompt"]}]
        return ChatJob(
            id="k",
            type="chat_conversation",
            expected_time=1,
            messages=tuple(Message(**message) for message in messages),
            stop=tuple(body.get("stop", ())),
            **{name: body[name] for name in ASKED},
        )

    def _event(self, said: dict[str, Any]) -> None:
        self._line(b"data: " + json.dumps(said).encode() + b"\n\n")

    def _line(self, line: bytes) -> None:
        self.wfile.write(line)
        self.wfile.flush()

    def _answer(self, status: int, said: dict[str, Any]) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve(qwen: Load) -> Iterator[Callable[[str], Inference]]:
    """Start servers for a variant; they end with the test."""
    started: list[tuple[Inference, threading.Thread]] = []

    def start(variant: str) -> Inference:
        server = Inference(qwen(variant))
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


def remote(server: Inference, variant: Any = "instruct", **changed: Any) -> RemoteTextPipeline:
    return RemoteTextPipeline(TextServer(**({"url": server.url, "key": KEY} | changed)), variant)


def follow(decoder: BatchDecoder, *keys: str) -> dict[str, list[TextDelta]]:
    """Every piece of these texts, to their ends."""
    pieces: dict[str, list[TextDelta]] = {key: [] for key in keys}
    until = time.monotonic() + PATIENCE_S
    while not all(found and (found[-1].finish_reason or found[-1].error) for found in pieces.values()):
        assert time.monotonic() < until
        for piece in decoder.step():
            pieces[piece.key].append(piece)
    return pieces


def text_of(pieces: list[TextDelta]) -> str:
    return "".join(piece.text for piece in pieces)


def error_of(decoder: BatchDecoder, job: ChatJob) -> OurvidzError:
    decoder.add("a", job)
    error = follow(decoder, "a")["a"][-1].error
    assert error is not None
    return error


def alone(pipeline: QwenPipeline, job: ChatJob) -> str:
    decoder = pipeline.new_decoder()
    decoder.add("k", job)
    return text_of(follow(decoder, "k")["k"])


@pytest.mark.parametrize("variant", ["instruct", "base"])
def test_a_text_is_the_same_as_from_the_own_model(
    serve: Callable[[str], Inference], qwen: Load, chat_job: Make, variant: str
) -> None:
    """Whoever moves the model to another machine gets the same words, pieces, counts and ends."""
    decoder = remote(serve(variant), variant).new_decoder()
    jobs = {
        "greedy": chat_job("a small star", system="Be brief."),
        "drawn": chat_job("a fox in the forest", temperature=0.9, seed=3, frequency_penalty=0.4),
        "cut": chat_job("a hill under a cloud", max_tokens=4),
        "stopped": chat_job("a yellow square", stop=(",",)),
    }
    for key, job in jobs.items():
        assert decoder.add(key, job) == 0
    pieces = follow(decoder, *jobs)
    for key, job in jobs.items():
        own = qwen(variant).new_decoder()
        prompt_tokens = own.add("k", job)
        expected = follow(own, "k")["k"]
        assert text_of(pieces[key]) == text_of(expected)
        last = pieces[key][-1]
        assert (last.finish_reason, last.tokens_generated) == (
            expected[-1].finish_reason,
            expected[-1].tokens_generated,
        )
        assert last.prompt_tokens == prompt_tokens
    assert decoder.step() == []


def test_text_is_streamed(serve: Callable[[str], Inference], chat_job: Make) -> None:
    """The first words are there while the rest is still being made."""
    server = serve("instruct")
    server.hold.set()
    decoder = remote(server).new_decoder()
    decoder.add("a", chat_job())
    until = time.monotonic() + PATIENCE_S
    while not (first := decoder.step()):
        assert time.monotonic() < until
    assert first[0].text
    assert first[0].finish_reason is None
    server.hold.clear()
    assert follow(decoder, "a")["a"][-1].finish_reason == "stop"


def test_a_step_without_news_comes_back(serve: Callable[[str], Inference], chat_job: Make) -> None:
    """Cancels and deadlines are heard between two steps."""
    server = serve("instruct")
    server.hold.set()
    decoder = remote(server).new_decoder()
    decoder.add("a", chat_job())
    until = time.monotonic() + PATIENCE_S
    while decoder.step():
        assert time.monotonic() < until


@pytest.mark.parametrize("how", ["leave", "drop"])
def test_the_server_learns_that_nobody_listens(
    serve: Callable[[str], Inference], chat_job: Make, how: str
) -> None:
    """To hang up is how such servers are told to stop, also when a whole batch is dropped."""
    server = serve("instruct")
    server.hold.set()
    decoder = remote(server).new_decoder()
    decoder.add("a", chat_job())
    while not decoder.step():
        pass
    if how == "leave":
        decoder.remove("a")
        decoder.remove("a")
        assert decoder.step() == []
    else:
        del decoder
        gc.collect()
    assert server.gone.acquire(timeout=PATIENCE_S)


def test_leaving_one_text_leaves_the_others(
    serve: Callable[[str], Inference], qwen: Load, chat_job: Make
) -> None:
    """Each has its own connection; a name is free again at once."""
    decoder = remote(serve("instruct")).new_decoder()
    decoder.add("a", chat_job())
    decoder.add("b", chat_job("a small star"))
    with pytest.raises(ValueError, match="a is in"):
        decoder.add("a", chat_job())
    decoder.remove("a")
    decoder.add("a", chat_job("a fox in the forest"))
    pieces = follow(decoder, "a", "b")
    assert text_of(pieces["a"]) == alone(qwen("instruct"), chat_job("a fox in the forest"))
    assert text_of(pieces["b"]) == alone(qwen("instruct"), chat_job("a small star"))


def test_a_text_that_does_not_fit_is_refused_alone(serve: Callable[[str], Inference], chat_job: Make) -> None:
    """The server counts; the caller hears which field it is about, and others go on."""
    decoder = remote(serve("instruct")).new_decoder()
    decoder.add("fits", chat_job())
    decoder.add("long", chat_job(max_tokens=2048))
    pieces = follow(decoder, "fits", "long")
    error = pieces["long"][-1].error
    assert isinstance(error, InvalidParameters)
    assert error.field == "messages"
    assert pieces["fits"][-1].finish_reason == "stop"


def test_a_broken_server_is_an_error_that_passes(serve: Callable[[str], Inference], chat_job: Make) -> None:
    """The same request may well succeed later."""
    server = serve("instruct")
    decoder = remote(server).new_decoder()
    server.broken = 500
    assert isinstance(error_of(decoder, chat_job()), WorkerUnavailable)
    server.broken = None
    decoder.add("a", chat_job())
    assert follow(decoder, "a")["a"][-1].finish_reason == "stop"


def test_a_server_that_is_gone_or_hangs_up_is_an_error_that_passes(chat_job: Make) -> None:
    """Half a text must not look like a whole one."""

    def serve_once(answer: bytes) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        texts = RemoteTextPipeline(
            TextServer(f"http://127.0.0.1:{listener.getsockname()[1]}", "tiny"), "instruct"
        )
        listing = b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"data": []}'
        half = b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [{"delta": {"content": "a"}}]}\n\n'
        for answer in (listing, half):
            threading.Thread(target=serve_once, args=(answer,), daemon=True).start()
            if answer == listing:
                decoder = texts.new_decoder()
        decoder.add("a", chat_job())
        pieces = follow(decoder, "a")["a"]
    assert text_of(pieces) == "a"
    assert isinstance(pieces[-1].error, WorkerUnavailable)
    gone = error_of(decoder, chat_job())
    assert isinstance(gone, WorkerUnavailable)
    assert "reached" in gone.message


def test_the_server_tells_what_it_has(serve: Callable[[str], Inference]) -> None:
    """An operator sees where texts come from, and never the key."""
    server = serve("instruct")
    texts = remote(server)
    assert (texts.info()["loaded"], texts.info()["name"]) == (False, None)
    texts.load()
    texts.load()
    info = texts.info()
    assert (info["loaded"], info["name"], info["context_length"]) == (True, "tiny", 2048)
    assert (info["inference_engine"], info["device"]) == ("openai", f"127.0.0.1:{server.server_port}")
    assert KEY not in str(info)
    texts.unload()
    assert texts.info()["loaded"] is False


def test_what_cannot_be_asked_is_said_before_the_first_job(serve: Callable[[str], Inference]) -> None:
    """A wrong key, a wrong URL, nobody there."""
    server = serve("instruct")
    with pytest.raises(ModelLoadError, match="401"):
        remote(server, key="wrong").load()
    with pytest.raises(ModelLoadError, match="404"):
        remote(server, url=server.url + "/elsewhere").load()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    with pytest.raises(WorkerUnavailable, match="reached"):
        remote(server, url=f"http://127.0.0.1:{free}/v1").load()
