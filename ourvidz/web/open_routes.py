"""The routes that need no key: `OURVIDZ_OPEN_ROUTES`."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.requests import Request

from ourvidz.errors import SettingsError

VARIABLE = "OURVIDZ_OPEN_ROUTES"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
DEFAULT_METHODS = ("GET", "POST")
"""Those of a path that names no method: nothing is deleted without a key unless the setting says so."""


class OpenRoutes:
    """Which requests need no key. Each entry is a path, or a method and a path: `POST /enhance`.

    A path is that of one request, or of a route with its parameters: `/llen/{queue}`. Raises `SettingsError`
    for a method without a path, and for something that is no path.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._open: set[tuple[str, str]] = set()
        method: str | None = None
        for word in words:
            if word.upper() in METHODS:
                if method is not None:
                    raise _wrong(f"{method} names no path")
                method = word.upper()
                continue
            path = "/" + word.strip("/")
            self._open.update((each, path) for each in ([method] if method else DEFAULT_METHODS))
            method = None
        if method is not None:
            raise _wrong(f"{method} names no path")

    def includes(self, request: Request) -> bool:
        """Whether a request needs no key. Its `Host` has no part in its path."""
        method = "GET" if request.method == "HEAD" else request.method
        template = getattr(request.scope.get("route"), "path", None)
        paths = {request.scope["path"], template}
        return any((each, path) in self._open for each in (method, request.method) for path in paths if path)


def _wrong(reason: str) -> SettingsError:
    return SettingsError(f"{VARIABLE}: {reason}; write POST /enhance, or a path alone", field=VARIABLE)
