"""The Celery tasks: one entry point for each kind of work.

Owns task names, and the retry policy that decides how an attempt ends.
Handles messages, claims and outcomes; what happens inside a job is in `workflows`.
"""

from __future__ import annotations

from importlib import import_module

from ourvidz.celery_settings import imports


def load() -> None:
    """Import every task module into this process, as a worker does at start."""
    for name in imports:
        import_module(name)
