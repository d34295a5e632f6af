"""Requests generated from the OpenAPI document get documented responses, and never a server error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis.errors import Unsatisfiable
from structlog.testing import capture_logs

from tests.properties import examples

# Schemathesis is imported by what uses it: every process collects this file, and importing takes a second.

CHECKS = (
    *("allow_header_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "status_code_conformance", "unsupported_method"),
)
KEY = {"X-API-Key": "k"}
BUDGET = examples(12, repeatable=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@pytest.fixture
def document(open_shim, chat_worker) -> Any:
    """The schema of a running shim with keys, loaded from its own document."""
    import schemathesis
    from schemathesis.config import SchemathesisConfig

    shim = open_shim(OURVIDZ_API_KEYS="all:k:jobs+chat+admin", OURVIDZ_EMBEDDED=True)
    chat_worker(shim.ledger)
    shim.register_worker()
    app = shim.client.app

    async def running(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("the test client has started this app")
        await app(scope, receive, send)

    return schemathesis.openapi.from_asgi(
        "/openapi.json", running, config=SchemathesisConfig.from_dict({"max-stream-events": 1})
    )


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_generated_requests_get_documented_responses(document, mode: str) -> None:
    """For valid and for invalid requests."""
    from schemathesis import GenerationMode, checks
    from schemathesis.specs.openapi import checks as openapi_checks

    all_checks = [checks.not_a_server_error, *(getattr(openapi_checks, name) for name in CHECKS)]
    tried = 0
    with capture_logs():
        for result in document.get_all_operations():
            operation = result.ok()

            @BUDGET
            @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
            def call(case: Any) -> None:
                nonlocal tried
                tried += 1
                case.call_and_validate(headers=KEY, checks=all_checks)

            with suppress(Unsatisfiable):  # a route without parameters takes no wrong ones
                call()
    assert tried > 50
