"""Manifests: what they say, and what breaks them."""

from __future__ import annotations

import io
import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ourvidz import __version__
from ourvidz.errors import InternalError
from ourvidz.media.credentials import Signer
from ourvidz.media.images import png
from ourvidz.media.provenance import VOCABULARY, source_type_of
from ourvidz.media.thumbnails import thumbnail
from ourvidz.media.video import mp4, probe

TYPES = ("image/png", "image/webp", "video/mp4")
MODEL = "trainedAlgorithmicMedia"


@pytest.fixture(scope="module")
def signer(make_chain: Callable[..., Any]) -> Signer:
    """A signer with a certificate that nobody vouches for."""
    chain = make_chain()
    return Signer(chain.certificate, chain.key)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """One file of each type that is stored."""
    across, down = np.meshgrid(np.arange(64), np.arange(48))
    hills = Image.fromarray(np.stack([across * 3, down * 3, 255 - across], axis=-1).astype(np.uint8))
    frames = [hills.rotate(turn) for turn in range(6)]
    return dict(zip(TYPES, (png(hills), thumbnail(hills), mp4(frames, fps=12)), strict=True))


def read(data: bytes, mime: str) -> dict[str, Any]:
    """What a verifier says of a file: its manifest and the state of its signature."""
    from c2pa import Reader

    with Reader(mime, io.BytesIO(data)) as reader:
        found: dict[str, Any] = json.loads(reader.json())
    return found


def manifest_of(data: bytes, mime: str) -> dict[str, Any]:
    found = read(data, mime)
    active: dict[str, Any] = found["manifests"][found["active_manifest"]]
    return active


def wrongs(data: bytes, mime: str) -> set[str]:
    """What a verifier finds wrong, besides that it does not know the signer."""
    return {said["code"] for said in read(data, mime)["validation_status"]} - {"signingCredential.untrusted"}


def pixels(data: bytes, mime: str) -> list[Any]:
    if mime != "video/mp4":
        return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tolist()]
    with av.open(io.BytesIO(data)) as clip:
        return [frame.to_ndarray(format="rgb24").tolist() for frame in clip.decode(video=0)]


@pytest.mark.parametrize("mime", TYPES)
def test_a_signed_file_says_that_a_model_made_it(signer: Signer, files: dict[str, bytes], mime: str) -> None:
    """A verifier that does not know the signer still finds the signature whole."""
    signed = signer.sign(files[mime], mime, MODEL)
    assert read(signed, mime)["validation_state"] == "Valid"
    assert wrongs(signed, mime) == set()
    found = manifest_of(signed, mime)
    (generator,) = found["claim_generator_info"]
    assert (generator["name"], generator["version"]) == ("OurVidz Worker", __version__)
    created = {"action": "c2pa.created", "digitalSourceType": VOCABULARY + MODEL}
    # An MP4's manifest also shows the hash of the file; a PNG's and a WEBP's has it too, out of sight.
    said = {said["label"]: said["data"] for said in found["assertions"] if ".hash." not in said["label"]}
    assert said == {"c2pa.actions.v2": {"actions": [created]}}


@pytest.mark.parametrize("mime", TYPES)
def test_signing_changes_no_pixel_and_keeps_the_xmp(
    signer: Signer, files: dict[str, bytes], mime: str
) -> None:
    """Readers that know nothing of manifests see what they saw before."""
    signed = signer.sign(files[mime], mime, MODEL)
    assert pixels(signed, mime) == pixels(files[mime], mime)
    assert source_type_of(signed) == VOCABULARY + MODEL


def test_a_signed_clip_is_still_a_clip_that_plays_at_once(signer: Signer, files: dict[str, bytes]) -> None:
    """The manifest goes in front, and moves what the index points to."""
    clip = files["video/mp4"]
    assert probe(signer.sign(clip, "video/mp4", MODEL)) == probe(clip)


@pytest.mark.parametrize("mime", TYPES)
def test_a_manifest_brings_no_picture_of_its_own(signer: Signer, files: dict[str, bytes], mime: str) -> None:
    """The library's thumbnail would be larger than ours."""
    signed = signer.sign(files[mime], mime, MODEL)
    assert "thumbnail" not in manifest_of(signed, mime)
    assert len(signed) - len(files[mime]) < 8192


def test_what_came_from_a_picture_says_so(signer: Signer, files: dict[str, bytes]) -> None:
    """An edit of somebody's photo must not pass for a picture without a model."""
    signed = signer.sign(files["image/png"], "image/png", "compositeWithTrainedAlgorithmicMedia")
    (action,) = manifest_of(signed, "image/png")["assertions"][0]["data"]["actions"]
    assert action["digitalSourceType"] == VOCABULARY + "compositeWithTrainedAlgorithmicMedia"


@pytest.mark.parametrize(
    ("mime", "before"), [("image/png", b"IDAT"), ("image/webp", b"VP8 "), ("video/mp4", b"mdat")]
)
def test_a_changed_picture_breaks_the_signature(
    signer: Signer, files: dict[str, bytes], mime: str, before: bytes
) -> None:
    """That is what a signature is for."""
    changed = bytearray(signer.sign(files[mime], mime, MODEL))
    changed[changed.rindex(before) + 40] ^= 1
    assert read(bytes(changed), mime)["validation_state"] == "Invalid"
    assert wrongs(bytes(changed), mime) & {"assertion.dataHash.mismatch", "assertion.bmffHash.mismatch"}


def test_a_changed_mark_breaks_the_signature(signer: Signer, files: dict[str, bytes]) -> None:
    """The XMP is part of what is signed."""
    signed = signer.sign(files["image/webp"], "image/webp", MODEL)
    packet = signed.rindex(b"XMP ")
    changed = signed[:packet] + signed[packet:].replace(b"trained", b"drained", 1)
    assert wrongs(changed, "image/webp") == {"assertion.dataHash.mismatch"}


def test_a_key_of_another_certificate_signs_nothing(make_chain: Any, files: dict[str, bytes]) -> None:
    """Its manifests would call every file forged."""
    mixed = Signer(make_chain().certificate, make_chain().key)
    with pytest.raises(InternalError, match="could not be signed"):
        mixed.sign(files["image/png"], "image/png", MODEL)


def test_a_certificate_that_has_run_out_signs_nothing(make_chain: Any, files: dict[str, bytes]) -> None:
    """A verifier would refuse it, and nobody here would know."""
    old = make_chain(days=9)
    with pytest.raises(InternalError, match="could not be signed"):
        Signer(old.certificate, old.key).sign(files["image/png"], "image/png", MODEL)


def test_what_is_not_a_picture_is_not_signed(signer: Signer) -> None:
    """The reason is an error of ours, which callers of the signer know."""
    with pytest.raises(InternalError, match="could not be signed"):
        signer.sign(b"nothing of the kind", "image/png", MODEL)


def test_several_threads_sign_at_once(signer: Signer, files: dict[str, bytes]) -> None:
    """The pictures of one job are encoded and signed side by side."""
    with ThreadPoolExecutor(4) as pool:
        signed = list(pool.map(lambda _: signer.sign(files["image/png"], "image/png", MODEL), range(12)))
    assert [wrongs(data, "image/png") for data in signed] == [set()] * 12


def test_a_forked_child_signs_with_its_parents_signer(signer: Signer, files: dict[str, bytes]) -> None:
    """The worker tries its certificate before it forks, and the child does the work."""
    signer.sign(files["image/png"], "image/png", MODEL)
    fork = multiprocessing.get_context("fork")
    mine, theirs = fork.Pipe(duplex=False)
    child = fork.Process(
        target=lambda: theirs.send_bytes(signer.sign(files["image/png"], "image/png", MODEL))
    )
    child.start()
    assert mine.poll(30), "the child has not answered"
    assert wrongs(mine.recv_bytes(), "image/png") == set()
    child.join(30)
    assert child.exitcode == 0


@pytest.fixture
def authority() -> Iterator[tuple[str, list[str]]]:
    """The URL of a time-stamp authority that is out of order, and what it was asked for."""
    asked: list[str] = []

    class OutOfOrder(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.headers["Content-Type"])
            self.send_error(503)

        def log_message(self, *said: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), OutOfOrder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()


def test_an_authority_that_was_configured_is_asked(
    make_chain: Any, files: dict[str, bytes], authority: tuple[str, list[str]]
) -> None:
    """Without its answer there is no manifest: a signature without a time ends with its certificate."""
    chain, (url, asked) = make_chain(), authority
    with pytest.raises(InternalError, match="could not be signed"):
        Signer(chain.certificate, chain.key, timestamp_url=url).sign(files["image/png"], "image/png", MODEL)
    assert asked == ["application/timestamp-query"]
