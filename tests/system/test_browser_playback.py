"""Generated clips in a browser and in a demuxer; the page of routes."""

from __future__ import annotations

import io
import re
import socket
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import uvicorn

from ourvidz.testing import CallbackRecorder, Eager, eager
from ourvidz.web.main import create_app

PLAY = """
async url => {
  const video = document.createElement("video");
  video.muted = true;
  document.body.append(video);
  const ended = new Promise(resolve => {
    video.onended = () => resolve("ended");
    video.onerror = () => resolve(`error ${video.error.code}: ${video.error.message}`);
  });
  const times = [];
  video.ontimeupdate = () => times.push(video.currentTime);
  video.src = url;
  video.play().catch(() => {});  // onerror has the reason
  const outcome = await ended;
  times.push(video.currentTime);
  const {videoWidth: width, videoHeight: height, duration} = video;
  return {outcome, width, height, duration, times};
}
"""
"""Plays a clip to its end; returns its size, its duration, and the times at which the player reported it."""


@pytest.fixture
def running(tmp_path: Path, ourvidz_callbacks: CallbackRecorder) -> Iterator[Eager]:
    """The job system in this process, with the route that serves stored files."""
    with eager(tmp_path, ourvidz_callbacks, OURVIDZ_EMBEDDED=True) as system:
        yield system


@pytest.fixture
def shim(running: Eager) -> Iterator[str]:
    """The URL of a server with the real application."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        config = uvicorn.Config(create_app(running.control), log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty page."""
    opened = browser.new_page()
    yield opened
    opened.close()


def clip(running: Eager, **config: int | str) -> dict[str, Any]:
    """Run one small job; return its asset."""
    job = {"id": "one", "type": "video_fast", "prompt": "a big red circle moving right", "user_id": "me"}
    running.submit(job | {"config": {"steps": 2, "seed": 3} | config})
    (asset,) = running.callbacks.of("one")[-1].payload["assets"]
    return dict(asset)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("frames", "fps", "size"), [(6, 12, "480*832"), (17, 16, "832*480"), (25, 24, "624*624")]
)
def test_a_clip_plays_to_its_end(
    page: Any, running: Eager, shim: str, frames: int, fps: int, size: str
) -> None:
    """Size, duration and time updates are those of the job."""
    asset = clip(running, frames=frames, fps=fps, size=size)
    played = page.evaluate(PLAY, f"{shim}/assets/{asset['url']}")
    metadata = asset["metadata"]
    assert played["outcome"] == "ended"
    assert (played["width"], played["height"]) == (metadata["width"], metadata["height"])
    assert played["duration"] == pytest.approx(frames / fps, abs=0.001)
    assert played["times"] == sorted(played["times"])
    assert played["times"][-1] == pytest.approx(frames / fps, abs=0.001)
    assert len(set(played["times"])) > 1


@pytest.mark.parametrize(("frames", "fps"), [(1, 8), (6, 12), (17, 16), (25, 24)])
def test_a_demuxer_reads_every_frame_at_its_time(running: Eager, frames: int, fps: int) -> None:
    """Editing programs read packets: as many as requested frames, evenly spaced."""
    asset = clip(running, frames=frames, fps=fps)
    with av.open(io.BytesIO(running.control.store.get(asset["url"]))) as file:
        (stream,) = file.streams
        assert (stream.type, stream.frames, stream.average_rate) == ("video", frames, fps)
        packets = [packet for packet in file.demux(stream) if packet.size]
        times = sorted(packet.pts * packet.time_base for packet in packets)
    assert times == [Fraction(number, fps) for number in range(frames)]


@pytest.mark.browser
def test_a_file_that_is_no_clip_is_a_playback_error(page: Any, running: Eager, shim: str) -> None:
    """The playback test detects a broken file."""
    running.control.store.put("workspace-temp/me/broken/0.mp4", b"no clip", content_type="video/mp4")
    played = page.evaluate(PLAY, f"{shim}/assets/workspace-temp/me/broken/0.mp4")
    assert played["outcome"].startswith("error")


@pytest.mark.browser
def test_the_page_of_routes_lists_and_sends_them(shim: str, page: Any) -> None:
    """It loads nothing from other hosts, and its policy forbids none of its own parts."""
    problems: list[str] = []
    page.on("console", lambda message: message.type == "error" and problems.append(message.text))
    page.on("request", lambda request: request.url.startswith(shim) or problems.append(request.url))
    page.goto(f"{shim}/docs")
    route = page.locator("details", has=page.locator("code", has_text=re.compile(r"^/jobs/\{id\}$"))).first
    route.locator("summary").first.click()
    route.locator("input").first.fill("absent")
    route.locator("button").click()
    page.wait_for_function("() => /^404 [^]*NOT_FOUND/m.test(document.body.innerText)")
    assert page.locator("main > details").count() > 30
    assert [problem for problem in problems if "404" not in problem] == []
