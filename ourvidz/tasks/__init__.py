"""The doors of the workers: one Celery task each.

Owns: task names, the one ladder that decides how a job ends.
Speaks: messages in, endings out. What happens inside a job is told in the workflows.
"""

from __future__ import annotations

from importlib import import_module

from ourvidz.celery_settings import imports


def load() -> None:
    """Import every task module into this process, as a worker does on its own."""
    for name in imports:
        import_module(name)
