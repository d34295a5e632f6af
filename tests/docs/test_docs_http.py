"""The reference pages match the shim: routes, scopes, status codes, fields and examples."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from ourvidz.settings import load_settings
from ourvidz.web import (
    autoscale,
    chat,
    documents,
    embedded,
    health,
    info,
    memory,
    openai,
    openai_errors,
    operations,
    problems,
    prompts,
    references,
    tokens,
    upstash,
    usage,
    users,
)
from ourvidz.web.main import create_app
from ourvidz.wiring import control

REFERENCE = [
    f"docs/reference/{name}.md" for name in ("http", "jobs", "chat", "operators", "embedded", "errors")
]
ROUTE = re.compile(r"`(GET|POST|PUT|PATCH|DELETE) (/[^`]*)`")
CALLERS = ("jobs", "chat", "admin", "read", "upstash", None)
MODELS: dict[str, type[BaseModel]] = {
    "Problem": problems.Problem,
    **{
        model.__name__: model
        for model in (
            documents.Accepted,
            documents.JobState,
            documents.JobPage,
            documents.CallbackState,
            documents.Deleted,
            tokens.IssuedToken,
            references.UploadedReference,
            references.DeletedReference,
            users.Erasure,
            upstash.Depth,
            prompts.Inspection,
            chat.ChatAnswer,
            chat.Enhanced,
            openai.Completion,
            openai.ModelList,
            openai.ModelCard,
            openai_errors.ErrorDocument,
            operations.Administered,
            operations.DeletedAssets,
            operations.QueueState,
            operations.WorkerState,
            usage.UsageReport,
            autoscale.Scale,
            memory.MemoryStatus,
            memory.MemoryReport,
            memory.Moved,
            memory.Pinned,
            memory.EmergencyResult,
            health.Health,
            health.Status,
            health.ModelInfo,
            info.EnhancementInfo,
            info.WorkerInfo,
            info.ChatHealth,
            info.Environment,
            embedded.Receipt,
            embedded.Deliveries,
        )
    },
}

OpenPage = Callable[[str], Any]


@pytest.fixture
def client(tmp_path: Path, make_ledger: Callable[..., Any]) -> Iterator[TestClient]:
    """A client of a shim with one key per scope, in embedded mode."""
    settings = load_settings(
        _env_file=None,
        OURVIDZ_STATE_DIR=tmp_path,
        OURVIDZ_EMBEDDED=True,
        OURVIDZ_API_KEYS="j:jobs:jobs,c:chat:chat,a:admin:admin,r:read:read",
        UPSTASH_REDIS_REST_URL="https://redis.example",
        UPSTASH_REDIS_REST_TOKEN="upstash",
    )
    with TestClient(create_app(control.build(settings, ledger=make_ledger()))) as client:
        yield client


def sections(page: OpenPage) -> Iterator[tuple[str, str, str]]:
    """Yield method, path and text of every documented route; a section may describe several."""
    for current_page in map(page, REFERENCE):
        for title in current_page.headings():
            for method, path in ROUTE.findall(title):
                yield method, path, current_page.section(title)


def routes(router: Any) -> Iterator[tuple[str, str]]:
    """Yield method and path of every route of an app, those of included routers too."""
    for route in router.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes(inner)
        else:
            for method in route.methods - {"HEAD"}:
                yield method, re.sub(r"{(\w+):\w+}", r"{\1}", route.path)


def test_every_route_is_documented_and_no_other(page: OpenPage, client: TestClient) -> None:
    """The pages have exactly the routes of the app."""
    app: Any = client.app
    not_found = ("GET", "/assets/{key}")
    real = set(routes(app)) - {not_found}
    documented = [(method, path) for method, path, _ in sections(page)]
    assert sorted(documented) == sorted(real)


def test_every_route_requires_the_scope_that_is_documented(page: OpenPage, client: TestClient) -> None:
    """Each route is called with each kind of key and without a key."""
    wrong = []
    for method, path, text in sections(page):
        scope = text.strip().splitlines()[0].partition(" · ")[0]
        named = set(re.findall(r"`(\w+)`", scope))
        assert scope.startswith("scope: "), f"{method} {path} names no scope"
        assert named <= {*CALLERS, "open"}, f"{method} {path} names no scope"
        for caller in CALLERS:
            headers = {} if caller is None else {"Authorization": f"Bearer {caller}"}
            answer = client.request(method, re.sub(r"{\w+}", "nothing", path), headers=headers, json={})
            refused = answer.status_code in (401, 403)
            if refused == bool(named & {caller, "open"}):
                wrong.append(f"{method} {path} as {caller}: {answer.status_code}")
    assert wrong == []


def test_every_route_answers_with_the_documented_statuses(page: OpenPage, client: TestClient) -> None:
    """The statuses are those of the OpenAPI document, which the fuzz test compares with the code."""
    app: Any = client.app
    paths = app.openapi()["paths"]
    wrong = []
    for method, path, text in sections(page):
        if path not in paths:
            continue
        line = text.strip().splitlines()[0]
        only = re.search(r"(\d{3}) \(`([^`]*)` only\)", line)
        documented = set(re.findall(r"\b\d{3}\b", line)) - ({only[1]} if only and only[2] != path else set())
        declared = set(paths[path][method.lower()]["responses"])
        if documented != declared:
            wrong.append(f"{method} {path}: {sorted(documented)} instead of {sorted(declared)}")
    assert wrong == []


def shape(value: Any) -> Any:
    """Return the names in a document, without its values."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else None


def test_every_example_has_exactly_the_fields_of_its_document(page: OpenPage) -> None:
    """Authors of clients use the examples, which have no more and no fewer fields than the documents."""
    seen = set()
    for block in (block for name in REFERENCE for block in page(name).blocks("json") if block.title):
        example = json.loads(block.text)
        parsed = MODELS[block.title].model_validate(example).model_dump(mode="json")
        assert shape(parsed) == shape(example), block.title
        seen.add(block.title)
    assert seen == set(MODELS), "every document has an example"
