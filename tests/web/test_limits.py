"""Size limits of request bodies."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

LIMIT, WITH_IMAGES = 4096, 16384


@pytest.fixture
def small(open_shim):
    """A shim with small limits."""
    return open_shim(OURVIDZ_BODY_LIMIT_BYTES=LIMIT, OURVIDZ_DATA_URI_LIMIT_BYTES=WITH_IMAGES)


def padded(shim, size: int, *, image: bool = False) -> bytes:
    """A valid job of exactly `size` bytes."""
    extra = {"config": {"image": ""}, "note": "data:image/png;base64,"} if image else {"note": ""}
    job = shim.payload(**extra)
    job["note"] += "A" * (size - len(json.dumps(job)))
    return json.dumps(job).encode()


def split(body: bytes, size: int = 700) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("size", "image", "status"),
    [
        (LIMIT, False, 202),
        (LIMIT + 1, False, 413),
        (LIMIT + 1, True, 202),
        (WITH_IMAGES, True, 202),
        (WITH_IMAGES + 1, True, 413),
        (WITH_IMAGES * 4, False, 413),
    ],
)
def test_the_limit_depends_on_whether_the_body_has_an_image(
    small, size: int, image: bool, status: int, streamed: bool
) -> None:
    """A chunked body declares no length: its bytes are counted."""
    body = padded(small, size, image=image)
    answer = small.client.post("/jobs", content=split(body) if streamed else body)
    assert answer.status_code == status, answer.text
    if status == 413:
        assert answer.json()["code"] == "PAYLOAD_TOO_LARGE"


def test_an_image_is_found_across_two_chunks(small) -> None:
    """Proxies and clients split bodies anywhere."""
    body = padded(small, LIMIT + 100, image=True)
    for cut in range(body.index(b'"data:image') - 2, body.index(b'"data:image') + 14):
        small.client.delete("/jobs/job-1")
        answer = small.client.post("/jobs", content=iter([body[:cut], body[cut:]]))
        assert answer.status_code in (200, 202), answer.text


def test_a_false_content_length_does_not_raise_the_limit(small) -> None:
    """The header is only the first check."""
    body = padded(small, LIMIT + 1)
    answer = small.client.post("/jobs", content=split(body), headers={"Content-Length": "10"})
    assert answer.status_code == 413
