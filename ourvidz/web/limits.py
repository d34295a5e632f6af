"""How large a body may be."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ourvidz.errors import PayloadTooLarge

PICTURE = b'"data:image'
"""What gives a body the larger limit: a JSON string that carries a picture."""


class BodyLimit:
    """Counts a body's bytes as they come, whatever its headers say: more than `plain` bytes are refused
    unless a picture lies in them, more than `with_pictures` always. The error is raised where the body is
    read."""

    def __init__(self, app: ASGIApp, *, plain: int, with_pictures: int) -> None:
        self._app = app
        self._plain = plain
        self._with_pictures = max(plain, with_pictures)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = _declared(scope)
        counted, pictured, tail = 0, False, b""

        async def measured() -> Message:
            nonlocal counted, pictured, tail
            if declared > self._with_pictures:
                raise self._refusal(self._with_pictures)
            message = await receive()
            if message["type"] != "http.request":
                return message
            chunk = message.get("body", b"")
            counted += len(chunk)
            pictured = pictured or PICTURE in tail + chunk
            tail = (tail + chunk)[-len(PICTURE) + 1 :]
            if counted > self._with_pictures:
                raise self._refusal(self._with_pictures)
            if counted > self._plain and not pictured and not message.get("more_body", False):
                raise self._refusal(self._plain)
            return message

        await self._app(scope, measured, send)

    def _refusal(self, limit: int) -> PayloadTooLarge:
        return PayloadTooLarge(f"The body is larger than {limit} bytes.", rule=f"at most {limit} bytes")


def _declared(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
