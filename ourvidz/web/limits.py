"""Limits the size of request bodies."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ourvidz.errors import PayloadTooLarge

DATA_URI_START = b'"data:image'
"""Start of a JSON string with an inline image: a body that contains it gets the larger limit."""


class BodyLimitMiddleware:
    """ASGI middleware that counts the bytes of a body as they arrive, whatever its headers declare.

    Raises `PayloadTooLarge`, from where the body is read, above `plain` bytes for a body without an inline
    image, and above `with_images` bytes for any. `files`: the limits of paths whose bodies are files.
    """

    def __init__(
        self, app: ASGIApp, *, plain: int, with_images: int, files: Mapping[str, int] | None = None
    ) -> None:
        self._app = app
        self._plain = plain
        self._with_images = max(plain, with_images)
        self._files = files or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        file_limit = self._files.get(scope["path"])
        plain, largest = (file_limit, file_limit) if file_limit else (self._plain, self._with_images)
        declared = _content_length(scope)
        received, has_image, tail = 0, False, b""

        async def receive_counted() -> Message:
            nonlocal received, has_image, tail
            if declared > largest:
                raise self._error(largest)
            message = await receive()
            if message["type"] != "http.request":
                return message
            chunk = message.get("body", b"")
            received += len(chunk)
            has_image = has_image or DATA_URI_START in tail + chunk
            tail = (tail + chunk)[-len(DATA_URI_START) + 1 :]
            if received > largest:
                raise self._error(largest)
            if received > plain and not has_image and not message.get("more_body", False):
                raise self._error(plain)
            return message

        await self._app(scope, receive_counted, send)

    def _error(self, limit: int) -> PayloadTooLarge:
        return PayloadTooLarge(f"The body is larger than {limit} bytes.", rule=f"at most {limit} bytes")


def _content_length(scope: Scope) -> int:
    """The declared length of a body in bytes; 0 when there is none."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
