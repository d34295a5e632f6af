"""The application: `uvicorn --factory ourvidz.web.main:create_app`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from typing import Any

from anyio import CapacityLimiter
from fastapi import Depends, FastAPI, params
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from ourvidz import __version__, log, startup
from ourvidz.callbacks.inbox import FILE_NAME, Inbox
from ourvidz.limits.callers import RouteClass
from ourvidz.settings import Settings
from ourvidz.web import (
    assets,
    autoscale,
    chat,
    docs_page,
    embedded,
    health,
    info,
    jobs,
    memory,
    openai,
    openapi,
    operations,
    prompts,
    references,
    tokens,
    upstash,
    usage,
    users,
)
from ourvidz.web.audit import AuditMiddleware
from ourvidz.web.auth import BROWSER, LISTS, Keyring, load_keyring, require_keys_where_public, require_scopes
from ourvidz.web.hosts import LocalOnlyMiddleware
from ourvidz.web.limits import BodyLimitMiddleware
from ourvidz.web.problems import ErrorMiddleware, on_http_exception, on_invalid_request
from ourvidz.web.rate_limits import RateLimitMiddleware, limit, limit_address
from ourvidz.web.slashes import SlashMiddleware
from ourvidz.wiring import control
from ourvidz.wiring.control import ControlPlane

_log = log.get(__name__)


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = openapi.publish(super().openapi())
        return self.openapi_schema


def create_app(services: ControlPlane | None = None) -> FastAPI:
    """The shim's application. With `services`, the whole process uses them while the application runs, and
    the caller closes them; without, the application uses and closes the process's own. Raises `SettingsError`
    where others can reach it and it has no keys."""
    settings = (services or control.current()).settings
    require_keys_where_public(settings)
    keyring = load_keyring(settings)
    app = _App(
        title="OurVidz",
        version=__version__,
        summary="AI images, videos and chat as jobs",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lambda app: _lifespan(app, services),
        middleware=_middleware(settings, keyring),
        exception_handlers={HTTPException: on_http_exception, RequestValidationError: on_invalid_request},
    )

    def protect(route_class: RouteClass, *scopes: str, own: str | None = None) -> list[params.Depends]:
        return [*require_scopes(keyring, *scopes, own=own), limit(route_class)]

    app.state.keyring = keyring
    app.state.started_at = time.monotonic()
    app.include_router(docs_page.router)
    app.include_router(health.router, dependencies=[Depends(limit_address)])
    app.include_router(info.router, dependencies=[Depends(limit_address)])
    app.include_router(info.protected_router, dependencies=protect("read", "jobs", "chat", "admin"))
    app.include_router(jobs.router, dependencies=protect("submit", "jobs"))
    app.include_router(jobs.events_router, dependencies=protect("read", "jobs", BROWSER))
    app.include_router(references.router, dependencies=protect("read", "jobs"))
    app.include_router(tokens.router, dependencies=protect("read", "jobs"))
    app.include_router(chat.router, dependencies=protect("sync", "chat"))
    app.include_router(openai.router, dependencies=protect("sync", "chat"))
    app.include_router(prompts.router, dependencies=protect("read", "jobs"))
    app.include_router(upstash.router, dependencies=protect("submit", "jobs", LISTS))
    app.include_router(operations.router, dependencies=protect("admin", "admin"))
    app.include_router(operations.assets_router, dependencies=protect("admin", "admin", own="jobs"))
    app.include_router(users.router, dependencies=protect("admin", "admin"))
    app.include_router(usage.router, dependencies=protect("admin", "admin", own="jobs"))
    app.include_router(autoscale.router, dependencies=protect("read", "admin", "read"))
    app.include_router(memory.router, dependencies=protect("admin", "admin"))
    if settings.embedded:
        app.include_router(embedded.receiver)
        app.include_router(embedded.router, dependencies=protect("read", "jobs"))
    app.include_router(assets.router, dependencies=protect("read", "jobs", BROWSER))
    app.include_router(assets.fallback)
    return app


def _middleware(settings: Settings, keyring: Keyring) -> list[Middleware]:
    """The middleware, outermost first."""
    layers = [Middleware(SlashMiddleware), Middleware(AuditMiddleware)]
    if settings.cors_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "X-API-Key", "Content-Type", "Last-Event-ID"],
                expose_headers=["RateLimit", "RateLimit-Policy", "Retry-After"],
            )
        )
    layers += [Middleware(ErrorMiddleware), Middleware(RateLimitMiddleware)]
    if keyring.empty:
        layers.append(Middleware(LocalOnlyMiddleware, settings=settings))
    layers.append(
        Middleware(
            BodyLimitMiddleware,
            plain=settings.body_limit,
            with_images=settings.data_uri_body_limit,
            files={"/references": settings.reference_max_bytes + references.MULTIPART_BYTES},
        )
    )
    return layers


@asynccontextmanager
async def _lifespan(app: FastAPI, services: ControlPlane | None) -> AsyncIterator[None]:
    with ExitStack() as resources:
        if services is not None:
            resources.enter_context(control.using(services))
        else:
            resources.callback(control.current().ledger.close)
        control.current().prepare("gate")
        audit_writer = control.current().audit
        if audit_writer is not None:
            resources.callback(audit_writer.close)
        settings = control.current().settings
        app.state.asset_threads = CapacityLimiter(assets.THREADS)
        if settings.embedded:
            inbox = Inbox(settings.state_dir / FILE_NAME)
            app.state.inbox = resources.enter_context(closing(inbox))
        async with control.current().followers.connected():
            startup.mark("ready")
            _log.info("process_ready", **startup.phases())
            yield
