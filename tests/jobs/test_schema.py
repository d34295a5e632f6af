"""The submission schema for the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ourvidz.jobs.catalog import ALIASES, CATALOG
from ourvidz.jobs.schema import conversation_schema, submission_schema

SAMPLES = sorted((Path(__file__).parents[1] / "contract" / "payloads").glob("*.json"))


def test_the_types_are_the_catalogs() -> None:
    """A new row documents itself."""
    assert submission_schema()["properties"]["type"]["enum"] == [*CATALOG, *ALIASES]


@pytest.mark.parametrize("schema", [submission_schema, conversation_schema])
def test_a_schema_is_one(schema: Callable[[], dict[str, Any]]) -> None:
    """OpenAPI tools refuse a document with a bad schema."""
    jsonschema.Draft202012Validator.check_schema(schema())
    json.dumps(schema())


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_accepted_samples_fit_the_schema(path: Path) -> None:
    """The document must not forbid what callers send today."""
    sample: dict[str, Any] = json.loads(path.read_text())
    if "job" not in sample["expect"]:
        return
    schema = submission_schema()
    payload = sample["payload"]
    payload.setdefault("id", payload.get("job_id"))
    payload.setdefault("type", payload.get("job_type"))
    jsonschema.validate(payload, schema)
