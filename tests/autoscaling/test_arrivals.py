"""Files of arrivals are read, and what is wrong in one is told with its line."""

from __future__ import annotations

import pytest

from ourvidz.autoscaling.arrivals import Arrival, read_arrivals
from ourvidz.errors import InvalidParameters


def test_arrivals_are_read_by_queue_in_their_order() -> None:
    """A log of several job types is one file; aliases are types too."""
    lines = ["at_s,type,run_s", "60,sdxl_image_fast,20.5", "5,sdxl_image_high,", "7,wan_video_fast,150"]
    assert read_arrivals(lines) == {
        "sdxl_queue": [Arrival(5, 42, 42), Arrival(60, 30, 20.5)],
        "wan_queue": [Arrival(7, 180, 150)],
    }


def test_more_columns_are_ignored() -> None:
    """Exports have them; the run time may be missing."""
    assert read_arrivals(["id,type,at_s", "a,chat_enhance,1"]) == {"chat_queue": [Arrival(1, 3, 3)]}


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        ([], "columns"),
        (["at,type", "1,sdxl_image_fast"], "columns"),
        (["at_s,type", "soon,sdxl_image_fast"], "Line 2"),
        (["at_s,type", "1,sdxl_image_fast", "-1,sdxl_image_fast"], "Line 3"),
        (["at_s,type", "nan,sdxl_image_fast"], "Line 2"),
        (["at_s,type", "1e12,sdxl_image_fast"], "Line 2"),
        (["at_s,type", "1"], "Line 2"),
        (["at_s,type", "1,poem"], "'poem' is no job type"),
        (["at_s,type,run_s", "1,sdxl_image_fast,inf"], "Line 2"),
    ],
)
def test_a_malformed_file_is_refused(lines: list[str], part: str) -> None:
    """With the line, as files have thousands."""
    with pytest.raises(InvalidParameters, match=part):
        read_arrivals(lines)
