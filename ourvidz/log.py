"""Structured logging: one line an event, no prompts, no secrets."""

from __future__ import annotations

import logging
import sys
from typing import Literal

from ourvidz.startup import hidden

with hidden("rich"):
    # structlog imports it for a formatter of tracebacks that is not used here: half of its import time.
    import structlog

Logger = structlog.stdlib.BoundLogger

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
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
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
