"""How large a body may be."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

LIMIT, WITH_PICTURES = 4096, 16384


@pytest.fixture
def small(open_shim):
    """A shim with small limits."""
    return open_shim(OURVIDZ_BODY_LIMIT_BYTES=LIMIT, OURVIDZ_DATA_URI_LIMIT_BYTES=WITH_PICTURES)


def padded(shim, size: int, *, picture: bool = False) -> bytes:
    """A valid job of exactly `size` bytes."""
    extra = {"config": {"image": ""}, "note": "data:image/png;base64,"} if picture else {"note": ""}
    job = shim.payload(**extra)
    job["note"] += "A" * (size - len(json.dumps(job)))
    return json.dumps(job).encode()


def pieces(body: bytes, size: int = 700) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("size", "picture", "status"),
    [
        (LIMIT, False, 202),
        (LIMIT + 1, False, 413),
        (LIMIT + 1, True, 202),
        (WITH_PICTURES, True, 202),
        (WITH_PICTURES + 1, True, 413),
        (WITH_PICTURES * 4, False, 413),
    ],
)
def test_the_limit_depends_on_whether_a_picture_is_inside(
    small, size: int, picture: bool, status: int, streamed: bool
) -> None:
    """A chunked body has no length to believe: its bytes are counted."""
    body = padded(small, size, picture=picture)
    answer = small.client.post("/jobs", content=pieces(body) if streamed else body)
    assert answer.status_code == status, answer.text
    if status == 413:
        assert answer.json()["code"] == "PAYLOAD_TOO_LARGE"


def test_a_picture_is_found_across_two_chunks(small) -> None:
    """Where a body is cut is nobody's choice."""
    body = padded(small, LIMIT + 100, picture=True)
    for cut in range(body.index(b'"data:image') - 2, body.index(b'"data:image') + 14):
        small.client.delete("/jobs/job-1")
        answer = small.client.post("/jobs", content=iter([body[:cut], body[cut:]]))
        assert answer.status_code in (200, 202), answer.text


def test_a_lying_length_helps_nobody(small) -> None:
    """The header is a first check only."""
    body = padded(small, LIMIT + 1)
    answer = small.client.post("/jobs", content=pieces(body), headers={"Content-Length": "10"})
    assert answer.status_code == 413
