"""The JSON schemas of the OpenAPI document are valid and accept the samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ourvidz.jobs.catalog import ALIASES, CATALOG
from ourvidz.jobs.schema import conversation_schema, submission_schema

SAMPLES = sorted((Path(__file__).parents[1] / "contract" / "payloads").glob("*.json"))


def test_the_schema_lists_all_types_and_aliases() -> None:
    """A new row of the catalog appears in the document."""
    assert submission_schema()["properties"]["type"]["enum"] == [*CATALOG, *ALIASES]


@pytest.mark.parametrize("schema", [submission_schema, conversation_schema])
def test_the_schemas_are_valid(schema: Callable[[], dict[str, Any]]) -> None:
    """OpenAPI tools reject a document with an invalid schema."""
    import jsonschema  # not earlier: it compiles grammars for a second

    jsonschema.Draft202012Validator.check_schema(schema())
    json.dumps(schema())


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_accepted_samples_fit_the_schema(path: Path) -> None:
    """The document must not forbid what callers send today."""
    import jsonschema  # not earlier: it compiles grammars for a second

    sample: dict[str, Any] = json.loads(path.read_text())
    if "job" not in sample["expect"]:
        return
    schema = submission_schema()
    payload = sample["payload"]
    payload.setdefault("id", payload.get("job_id"))
    payload.setdefault("type", payload.get("job_type"))
    jsonschema.validate(payload, schema)
