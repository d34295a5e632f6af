"""Requests generated from the OpenAPI document get documented responses, and never a server error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from structlog.testing import capture_logs

CHECKS = [
    schemathesis.checks.not_a_server_error,
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
KEY = {"X-API-Key": "k"}
BUDGET = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def document(open_shim, chat_worker) -> Any:
    """The schema of a running shim with keys, loaded from its own document."""
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


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_generated_requests_get_documented_responses(document, mode: GenerationMode) -> None:
    """For valid and for invalid requests."""
    tried = 0
    with capture_logs():
        for result in document.get_all_operations():
            operation = result.ok()

            @BUDGET
            @given(case=operation.as_strategy(generation_mode=mode))
            def call(case: Any) -> None:
                nonlocal tried
                tried += 1
                case.call_and_validate(headers=KEY, checks=CHECKS)

            with suppress(Unsatisfiable):  # a route without parameters takes no wrong ones
                call()
    assert tried > 50
