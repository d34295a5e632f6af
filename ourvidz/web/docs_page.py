"""The page `/docs`: all routes, to read and to try. It loads nothing from other hosts."""

from __future__ import annotations

import secrets
from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import HTMLResponse

router = APIRouter()

NONCE = "NONCE"


@router.get("/docs", include_in_schema=False)
def docs() -> HTMLResponse:
    """Read the page."""
    nonce = secrets.token_urlsafe(16)
    policy = f"default-src 'none'; connect-src 'self'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
    headers = {
        "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(_page().replace(f'"{NONCE}"', f'"{nonce}"'), headers=headers)


@cache
def _page() -> str:
    return (files("ourvidz.web") / "pages" / "docs.html").read_text(encoding="utf-8")
