"""Data URIs are decoded strictly and within the size limit."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from ourvidz.errors import ReferenceFrameError
from ourvidz.references.data_uri import MALFORMED, TOO_LARGE, decode_data_uri

BYTES = bytes(range(256))
ENCODED = base64.b64encode(BYTES).decode()


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{ENCODED}",
        f"DATA:IMAGE/PNG;BASE64,{ENCODED}",
        f"data:image/png;charset=utf-8;base64,{ENCODED}",
        f"data:image/png;base64,{ENCODED.rstrip('=')}",
        f"data:image/png;base64,{quote(ENCODED, safe='')}",
        f"data:image/png;base64,{ENCODED[:100]}\r\n {ENCODED[100:]}",
        f"data:image/x-anything,{quote(BYTES)}",
    ],
)
def test_both_encodings_are_decoded(uri: str) -> None:
    """Browsers write base64; the RFC also defines percent-encoding."""
    assert decode_data_uri(uri, max_bytes=256) == BYTES


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
def test_a_malformed_uri_is_an_unusable_reference(uri: str) -> None:
    """A lenient decoder would return bytes that the caller did not send."""
    with pytest.raises(ReferenceFrameError) as refused:
        decode_data_uri(uri, max_bytes=1000)
    assert refused.value.message == MALFORMED


@pytest.mark.parametrize(
    "uri",
    [f"data:image/png;base64,{ENCODED}", "data:image/png," + "x" * 10_000, f"data:image/a,{quote(BYTES)}"],
)
def test_a_uri_that_is_too_large_is_rejected(uri: str) -> None:
    """The limit is in decoded bytes, for both encodings."""
    with pytest.raises(ReferenceFrameError) as refused:
        decode_data_uri(uri, max_bytes=255)
    assert refused.value.message == TOO_LARGE


@pytest.mark.timeout(5)
def test_a_header_of_megabytes_is_parsed_in_time() -> None:
    """Its regular expression must not backtrack."""
    with pytest.raises(ReferenceFrameError):
        decode_data_uri("data:image/png" + ";a" * 4_000_000, max_bytes=10)
