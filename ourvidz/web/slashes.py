"""Serves a path that ends in a slash as the same path without it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

KEYS = ("/assets/", "/references/")
"""What begins with these ends in a key, whose slash counts."""


class SlashMiddleware:
    """ASGI middleware that removes one slash from the end of a path.

    The framework would redirect, to a URL whose host is whatever the request's `Host` says.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and len(path) > 1 and path.endswith("/") and not path.startswith(KEYS):
            scope["path"] = path[:-1]
        await self._app(scope, receive, send)
