"""The log of a process."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from ourvidz import log

UNSAFE = "".join(
    map(chr, [*range(32), *range(127, 160), 0x61C, 0x200B, 0x200E, 0x2028, 0x202E, 0x2066, 0xFEFF])
)


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = before[0], before[1]


@pytest.mark.parametrize("style", ["console", "json"])
@pytest.mark.parametrize("place", ["value", "event", "name", "library", "exception"])
def test_what_callers_send_cannot_look_like_other_lines(root_logger, capsys, style, place) -> None:
    """Control characters and those that turn text around are escaped in both formats, wherever they are."""
    log.configure("INFO", style)
    logger = log.get("ourvidz.test")
    text = f"a{UNSAFE}b"
    match place:
        case "value":
            logger.info("audit", who=text, more={"deep": text})
        case "event":
            logger.info(text)
        case "name":
            logger.info("audit", **{text: 1})
        case "library":
            logging.getLogger("other").info("%s", text)
        case "exception":
            try:
                raise ValueError(text)
            except ValueError:
                logger.error("failed", exc_info=sys.exc_info())
    written = capsys.readouterr().err
    assert not set(written) & (set(UNSAFE) - {"\n"})
    lines = written.rstrip("\n").split("\n")
    if style == "json":
        assert json.loads(lines[0])["level"]
    assert len(lines) == 1 or (place == "exception" and all(line.startswith(" ") for line in lines[1:]))
