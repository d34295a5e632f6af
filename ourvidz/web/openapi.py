"""The published OpenAPI document: the framework's, with the schema of problems and stable schema names."""

from __future__ import annotations

import json
from typing import Any

from ourvidz.web import problems

PUBLISHED_NAMES = {
    "AssistantMessage": "Said",
    "JobErrorDocument": "FaultDocument",
    "JobSummary": "JobListed",
    "LoadedModel": "ModelSeen",
    "PromptAnalysis": "Words",
    "TextCapabilities": "Abilities",
    "WorkerSummary": "WorkerSeen",
}
"""Class names whose schema was published under another name, which generated clients contain."""


def publish(document: dict[str, Any]) -> dict[str, Any]:
    """The published form of the document that the framework generated."""
    text = json.dumps(problems.add_schema(document))
    for name, published in PUBLISHED_NAMES.items():
        text = text.replace(f'"#/components/schemas/{name}"', f'"#/components/schemas/{published}"')
    renamed: dict[str, Any] = json.loads(text)
    schemas = renamed["components"]["schemas"]
    for name, published in PUBLISHED_NAMES.items():
        if name in schemas:
            schemas[published] = {**schemas.pop(name), "title": published}
    return renamed
