"""The application: `uvicorn --factory ourvidz.web.main:create_app`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from ourvidz import __version__
from ourvidz.settings import Settings
from ourvidz.web import chat, embedded, health, info, jobs, openai, operations, prompts, upstash
from ourvidz.web.audit import Audit
from ourvidz.web.auth import LISTS, Keyring, LocalOnly, guard, keyring
from ourvidz.web.inbox import Inbox
from ourvidz.web.limits import BodyLimit
from ourvidz.web.problems import LastResort, declare, on_http_exception, on_invalid_request
from ourvidz.wiring import control
from ourvidz.wiring.control import Control


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        return declare(super().openapi())


def create_app(given: Control | None = None) -> FastAPI:
    """The shim. With a control half given, everything in this process uses that one while the app runs,
    and who gave it closes it."""
    settings = (given or control.current()).settings
    ring = keyring(settings)
    app = _App(
        title="OurVidz",
        version=__version__,
        summary="AI images, videos and chat as jobs",
        redoc_url=None,
        lifespan=lambda app: _life(app, given),
        middleware=_middleware(settings, ring),
        exception_handlers={HTTPException: on_http_exception, RequestValidationError: on_invalid_request},
    )
    app.state.keyring = ring
    app.state.started_at = time.monotonic()
    app.include_router(health.router)
    app.include_router(info.router)
    app.include_router(info.inside, dependencies=guard(ring, "jobs", "chat", "admin"))
    app.include_router(jobs.router, dependencies=guard(ring, "jobs"))
    app.include_router(chat.router, dependencies=guard(ring, "chat"))
    app.include_router(openai.router, dependencies=guard(ring, "chat"))
    app.include_router(prompts.router, dependencies=guard(ring, "jobs"))
    app.include_router(upstash.router, dependencies=guard(ring, "jobs", LISTS))
    app.include_router(operations.router, dependencies=guard(ring, "admin"))
    if settings.embedded:
        app.include_router(embedded.receiver)
        app.include_router(embedded.router, dependencies=guard(ring, "jobs"))
    return app


def _middleware(settings: Settings, ring: Keyring) -> list[Middleware]:
    """Outermost first."""
    layers = [Middleware(Audit)]
    if settings.cors_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "X-API-Key", "Content-Type", "Last-Event-ID"],
            )
        )
    layers.append(Middleware(LastResort))
    if ring.empty:
        layers.append(Middleware(LocalOnly, settings=settings))
    layers.append(
        Middleware(BodyLimit, plain=settings.body_limit, with_pictures=settings.data_uri_body_limit)
    )
    return layers


@asynccontextmanager
async def _life(app: FastAPI, given: Control | None) -> AsyncIterator[None]:
    with ExitStack() as until_the_end:
        if given is not None:
            until_the_end.enter_context(control.using(given))
        else:
            until_the_end.callback(control.current().ledger.close)
        settings = control.current().settings
        if settings.embedded:
            app.state.inbox = until_the_end.enter_context(
                closing(Inbox(settings.state_dir / "inbox.sqlite3"))
            )
        yield
