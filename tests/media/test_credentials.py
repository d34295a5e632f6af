"""Signed files verify, keep their pixels, and stop verifying when they are changed."""

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
from ourvidz.media.images import encode_png
from ourvidz.media.provenance import VOCABULARY, read_source_type
from ourvidz.media.thumbnails import thumbnail
from ourvidz.media.video import encode_mp4, probe

TYPES = ("image/png", "image/webp", "video/mp4")
MODEL = "trainedAlgorithmicMedia"


@pytest.fixture(scope="module")
def signer(make_chain: Callable[..., Any]) -> Signer:
    """A signer with a self-signed certificate chain."""
    chain = make_chain()
    return Signer(chain.certificate, chain.key)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """One file of each type that is stored."""
    across, down = np.meshgrid(np.arange(64), np.arange(48))
    hills = Image.fromarray(np.stack([across * 3, down * 3, 255 - across], axis=-1).astype(np.uint8))
    frames = [hills.rotate(turn) for turn in range(6)]
    return dict(zip(TYPES, (encode_png(hills), thumbnail(hills), encode_mp4(frames, fps=12)), strict=True))


def read(data: bytes, mime: str) -> dict[str, Any]:
    """The verifier's report on a file: its manifests and the state of its signature."""
    from c2pa import Reader

    with Reader(mime, io.BytesIO(data)) as reader:
        report: dict[str, Any] = json.loads(reader.json())
    return report


def manifest_of(data: bytes, mime: str) -> dict[str, Any]:
    report = read(data, mime)
    active: dict[str, Any] = report["manifests"][report["active_manifest"]]
    return active


def failures(data: bytes, mime: str) -> set[str]:
    """The codes of all failed checks, except that the verifier does not know the signer."""
    return {status["code"] for status in read(data, mime)["validation_status"]} - {
        "signingCredential.untrusted"
    }


def pixels(data: bytes, mime: str) -> list[Any]:
    if mime != "video/mp4":
        return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tolist()]
    with av.open(io.BytesIO(data)) as clip:
        return [frame.to_ndarray(format="rgb24").tolist() for frame in clip.decode(video=0)]


@pytest.mark.parametrize("mime", TYPES)
def test_a_manifest_states_that_a_model_made_the_file(
    signer: Signer, files: dict[str, bytes], mime: str
) -> None:
    """The signature is valid even for a verifier that does not trust the signer."""
    signed = signer.sign(files[mime], mime, MODEL)
    assert read(signed, mime)["validation_state"] == "Valid"
    assert failures(signed, mime) == set()
    manifest = manifest_of(signed, mime)
    (generator,) = manifest["claim_generator_info"]
    assert (generator["name"], generator["version"]) == ("OurVidz Worker", __version__)
    created = {"action": "c2pa.created", "digitalSourceType": VOCABULARY + MODEL}
    # The report lists the hash assertion of an MP4, but not that of a PNG or a WEBP.
    assertions = {
        each["label"]: each["data"] for each in manifest["assertions"] if ".hash." not in each["label"]
    }
    assert assertions == {"c2pa.actions.v2": {"actions": [created]}}


@pytest.mark.parametrize("mime", TYPES)
def test_signing_changes_no_pixel_and_keeps_the_xmp(
    signer: Signer, files: dict[str, bytes], mime: str
) -> None:
    """Programs that do not know manifests read the same file as before."""
    signed = signer.sign(files[mime], mime, MODEL)
    assert pixels(signed, mime) == pixels(files[mime], mime)
    assert read_source_type(signed) == VOCABULARY + MODEL


def test_a_signed_clip_still_starts_fast(signer: Signer, files: dict[str, bytes]) -> None:
    """The manifest is inserted at the front, which shifts every byte that the index points to."""
    clip = files["video/mp4"]
    assert probe(signer.sign(clip, "video/mp4", MODEL)) == probe(clip)


@pytest.mark.parametrize("mime", TYPES)
def test_a_manifest_has_no_thumbnail(signer: Signer, files: dict[str, bytes], mime: str) -> None:
    """The library's thumbnail would be megabytes large."""
    signed = signer.sign(files[mime], mime, MODEL)
    assert "thumbnail" not in manifest_of(signed, mime)
    assert len(signed) - len(files[mime]) < 8192


def test_an_image_from_a_reference_has_its_own_source_type(signer: Signer, files: dict[str, bytes]) -> None:
    """An edited photo must not pass for one that was generated from text alone."""
    signed = signer.sign(files["image/png"], "image/png", "compositeWithTrainedAlgorithmicMedia")
    (action,) = manifest_of(signed, "image/png")["assertions"][0]["data"]["actions"]
    assert action["digitalSourceType"] == VOCABULARY + "compositeWithTrainedAlgorithmicMedia"


@pytest.mark.parametrize(
    ("mime", "before"), [("image/png", b"IDAT"), ("image/webp", b"VP8 "), ("video/mp4", b"mdat")]
)
def test_a_changed_pixel_breaks_the_signature(
    signer: Signer, files: dict[str, bytes], mime: str, before: bytes
) -> None:
    """The hash in the manifest covers the image data."""
    changed = bytearray(signer.sign(files[mime], mime, MODEL))
    changed[changed.rindex(before) + 40] ^= 1
    assert read(bytes(changed), mime)["validation_state"] == "Invalid"
    assert failures(bytes(changed), mime) & {"assertion.dataHash.mismatch", "assertion.bmffHash.mismatch"}


def test_a_changed_xmp_packet_breaks_the_signature(signer: Signer, files: dict[str, bytes]) -> None:
    """The hash in the manifest covers the XMP packet."""
    signed = signer.sign(files["image/webp"], "image/webp", MODEL)
    packet = signed.rindex(b"XMP ")
    changed = signed[:packet] + signed[packet:].replace(b"trained", b"drained", 1)
    assert failures(changed, "image/webp") == {"assertion.dataHash.mismatch"}


def test_a_key_of_another_certificate_signs_nothing(make_chain: Any, files: dict[str, bytes]) -> None:
    """Verifiers would report its files as forged."""
    mixed = Signer(make_chain().certificate, make_chain().key)
    with pytest.raises(InternalError, match="could not be signed"):
        mixed.sign(files["image/png"], "image/png", MODEL)


def test_an_expired_certificate_signs_nothing(make_chain: Any, files: dict[str, bytes]) -> None:
    """Verifiers would reject its files, and nothing here would show that."""
    old = make_chain(days=9)
    with pytest.raises(InternalError, match="could not be signed"):
        Signer(old.certificate, old.key).sign(files["image/png"], "image/png", MODEL)


def test_data_that_is_no_image_is_not_signed(signer: Signer) -> None:
    """The library's exception becomes an error of the project's tree."""
    with pytest.raises(InternalError, match="could not be signed"):
        signer.sign(b"nothing of the kind", "image/png", MODEL)


def test_several_threads_sign_at_once(signer: Signer, files: dict[str, bytes]) -> None:
    """The images of one job are encoded and signed in several threads."""
    with ThreadPoolExecutor(4) as pool:
        signed = list(pool.map(lambda _: signer.sign(files["image/png"], "image/png", MODEL), range(12)))
    assert [failures(data, "image/png") for data in signed] == [set()] * 12


def test_a_forked_child_signs_with_its_parents_signer(signer: Signer, files: dict[str, bytes]) -> None:
    """A worker may check its certificate before it forks the child that signs."""
    signer.sign(files["image/png"], "image/png", MODEL)
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(
        target=lambda: theirs.send_bytes(signer.sign(files["image/png"], "image/png", MODEL))
    )
    child.start()
    assert ours.poll(30), "no answer from the child"
    assert failures(ours.recv_bytes(), "image/png") == set()
    child.join(30)
    assert child.exitcode == 0


@pytest.fixture
def authority() -> Iterator[tuple[str, list[str]]]:
    """A time stamp authority that answers 503: its URL, and the content types of the requests it got."""
    requests: list[str] = []

    class Unavailable(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            requests.append(self.headers["Content-Type"])
            self.send_error(503)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Unavailable)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", requests
    server.shutdown()
    server.server_close()


def test_a_configured_time_stamp_authority_is_used(
    make_chain: Any, files: dict[str, bytes], authority: tuple[str, list[str]]
) -> None:
    """If it fails, signing fails: without a time stamp a signature expires with its certificate."""
    chain, (url, requests) = make_chain(), authority
    with pytest.raises(InternalError, match="could not be signed"):
        Signer(chain.certificate, chain.key, timestamp_url=url).sign(files["image/png"], "image/png", MODEL)
    assert requests == ["application/timestamp-query"]
