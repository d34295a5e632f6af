"""The settings page lists the settings, with their defaults and values."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

import ourvidz
from ourvidz.settings import Settings

PACKAGE = Path(ourvidz.__file__).parent
SETTINGS = "docs/reference/settings.md"
NONE = "–"

OpenPage = Callable[[str], Any]


def default_of(field: FieldInfo) -> str:
    """Return a default as the table writes it."""
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def table(page: OpenPage) -> dict[str, tuple[str, str]]:
    """Return default and meaning of every documented variable."""
    rows = page(SETTINGS).rows("variable", "default")
    return {row[0].strip("`"): (row[1].strip("`"), row[2]) for row in rows}


def test_the_settings_table_is_the_settings(page: OpenPage) -> None:
    """The table has every variable with its default."""
    documented = {name: default for name, (default, _) in table(page).items()}
    assert documented == {
        str(field.validation_alias): default_of(field) for field in Settings.model_fields.values()
    }


def test_the_values_of_an_enumerated_setting_are_documented(page: OpenPage) -> None:
    """The row of the variable has all of its values."""
    documented = table(page)
    for field in Settings.model_fields.values():
        if get_origin(field.annotation) is Literal:
            meaning = documented[str(field.validation_alias)][1]
            assert [value for value in get_args(field.annotation) if f"`{value}`" not in meaning] == []


def test_a_setting_that_nothing_reads_is_marked(page: OpenPage) -> None:
    """Operators can see that such a variable has no effect."""
    read = {
        node.attr
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    unread = {str(f.validation_alias) for name, f in Settings.model_fields.items() if name not in read}
    marked = {name for name, (_, meaning) in table(page).items() if "no effect yet" in meaning}
    assert marked == unread - {"OURVIDZ_STORAGE"}, "OURVIDZ_STORAGE has one value, and the table says so"
