"""The tables of error codes list the error classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ourvidz import errors

ERRORS = "docs/reference/errors.md"
TROUBLESHOOTING = "docs/troubleshooting.md"
ACTORS = {
    errors.CallerError: "caller",
    errors.FallbackError: "nobody",
    errors.OperatorError: "operator",
    errors.OurError: "us",
}

OpenPage = Callable[[str], Any]


def row_of(kind: type[errors.OurvidzError]) -> list[str]:
    """Return status, actor, retryable and attempts of a class as the table writes them."""
    return [
        str(kind.http_status),
        next(actor for branch, actor in ACTORS.items() if issubclass(kind, branch)),
        "yes" if kind.retryable else "no",
        f"{kind.attempts}{' (the step)' if kind.scope == 'step' else ''}",
    ]


def test_the_table_of_codes_is_the_error_tree(page: OpenPage) -> None:
    """Callers branch on these codes; the base class says who must act."""
    documented = {row[0].strip("`"): row[1:5] for row in page(ERRORS).rows("code", "HTTP")}
    assert documented == {code: row_of(kind) for code, kind in errors.by_code().items()}


def test_every_error_code_has_advice(page: OpenPage) -> None:
    """The troubleshooting page says for each code what to do."""
    advised = [row[0].strip("`") for row in page(TROUBLESHOOTING).rows("code", "the caller")]
    assert sorted(advised) == sorted(errors.by_code())
