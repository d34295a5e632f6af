"""Structured logging: one line an event, no prompts, no secrets."""

from __future__ import annotations

import logging
import re
import sys
from typing import Literal

from ourvidz.startup import hidden

with hidden("rich"):
    # structlog imports it for a formatter of tracebacks that is not used here: half of its import time.
    import structlog

Logger = structlog.stdlib.BoundLogger

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Control characters, and those that are invisible or change the direction of text: with them, what a caller
sends could look like other entries, or hide some."""


def escape(text: str) -> str:
    """The text with `\\xNN`, `\\uNNNN` or `\\UNNNNNNNN` in place of such characters."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def _escape_values(
    logger: object,  # noqa: ARG001
    name: str,  # noqa: ARG001
    event: structlog.typing.EventDict,
) -> structlog.typing.EventDict:
    """Escape the texts of an entry for the console. The lines of a traceback stay lines, indented."""
    escaped = {}
    for key, value in event.items():
        if key in {"exception", "stack"} and isinstance(value, str):
            escaped[key] = "\n".join(f"  {escape(line)}" for line in value.split("\n"))
        else:
            escaped[escape(key)] = escape(value) if isinstance(value, str) else value
    return escaped


_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]

# At import: until a process configures its handlers, events go through the standard library, which keeps
# them off standard output. The command line's answers belong there.
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *_SHARED,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)


def configure(level: str = "INFO", style: Literal["json", "console"] = "console") -> None:
    """Send this process's log to standard error, in one shape for ours and the libraries'."""
    console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    # JSON is ASCII, with every control character escaped.
    json_lines = structlog.processors.JSONRenderer()
    renderers: list[structlog.typing.Processor] = (
        [json_lines] if style == "json" else [_escape_values, console]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *renderers,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def get(name: str) -> Logger:
    """Return the structured logger of this name."""
    logger: Logger = structlog.stdlib.get_logger(name)
    return logger


def bind(**context: object) -> None:
    """Replace the log context of this thread or task: its later entries carry these fields."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**context)
