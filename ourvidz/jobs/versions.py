"""Versions of stored documents: which release may read a document.

A field that a later release adds is declared with the document version that brought it:

    deadline_s: Annotated[float | None, Since(2)] = None

It is stored only if it differs from its default, and the document then has that version. So releases side by
side read each other's documents as long as no caller uses what is new; an older one leaves the rest alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

FIRST_VERSION = 1


@dataclass(frozen=True, slots=True)
class Since:
    """Annotation of a field: the document version that added it."""

    version: int


def later_fields(model: BaseModel) -> tuple[dict[str, int], set[str]]:
    """The fields of a document that a version after the first added: those in use with their versions, and
    those that have their default."""
    in_use: dict[str, int] = {}
    unused: set[str] = set()
    for name, field in type(model).model_fields.items():
        for added in field.metadata:
            if isinstance(added, Since) and getattr(model, name) == field.get_default(
                call_default_factory=True
            ):
                unused.add(name)
            elif isinstance(added, Since):
                in_use[name] = added.version
    return in_use, unused
