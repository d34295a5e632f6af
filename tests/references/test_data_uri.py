"""Pictures written out in the payload."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from ourvidz.errors import ReferenceFrameError
from ourvidz.references.data_uri import MALFORMED, TOO_LARGE, data_uri_bytes

BYTES = bytes(range(256))
PACKED = base64.b64encode(BYTES).decode()


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{PACKED}",
        f"DATA:IMAGE/PNG;BASE64,{PACKED}",
        f"data:image/png;charset=utf-8;base64,{PACKED}",
        f"data:image/png;base64,{PACKED.rstrip('=')}",
        f"data:image/png;base64,{quote(PACKED, safe='')}",
        f"data:image/png;base64,{PACKED[:100]}\r\n {PACKED[100:]}",
        f"data:image/x-anything,{quote(BYTES)}",
    ],
)
def test_both_spellings_are_read(uri: str) -> None:
    """Browsers write base64; the other form is as old."""
    assert data_uri_bytes(uri, max_bytes=256) == BYTES


@pytest.mark.parametrize(
    "uri",
    [
        *("data:", "data:,", "data:image/png", "data:image/png;base64", "data:;base64,AAAA"),
        *("data:base64,AAAA", "data:text/html,<script>"),
        *("data:text/html;base64,AAAA", "data:application/pdf;base64,AAAA"),
        *("data:image/png;base64,!!!!", "data:image/png;base64,A", "data:image/png;base64,AA=A"),
        *("data:image/png;base64,AAA-_", "data:image/ png;base64,AAAA"),
        *("data:image/;base64,AAAA", "data:video/mp4,x"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_an_unusable_reference(uri: str) -> None:
    """Lenient decoders make up bytes that nobody sent."""
    with pytest.raises(ReferenceFrameError) as refused:
        data_uri_bytes(uri, max_bytes=1000)
    assert refused.value.message == MALFORMED


@pytest.mark.parametrize(
    "uri",
    [f"data:image/png;base64,{PACKED}", "data:image/png," + "x" * 10_000, f"data:image/a,{quote(BYTES)}"],
)
def test_what_is_too_large_is_not_kept(uri: str) -> None:
    """The limit is in bytes, whatever the spelling."""
    with pytest.raises(ReferenceFrameError) as refused:
        data_uri_bytes(uri, max_bytes=255)
    assert refused.value.message == TOO_LARGE


@pytest.mark.timeout(5)
def test_a_head_of_megabytes_costs_no_time() -> None:
    """The pattern for it must not backtrack."""
    with pytest.raises(ReferenceFrameError):
        data_uri_bytes("data:image/png" + ";a" * 4_000_000, max_bytes=10)
