"""The Lua scripts: each header documents the arguments that the script reads."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

SCRIPTS = {
    file.name: file.read_text(encoding="utf-8")
    for file in files("ourvidz.ledger.scripts").iterdir()
    if file.name.endswith(".lua")
}
FIRST_ARGUMENT = 4
"""`ARGV` index of the first argument of a script; the libraries read the ones before it."""
UNPACK = re.compile(r"local ([\w, ]+) = unpack\(ARGV, (\d+)(?:, (\d+))?\)")


def header(source: str) -> dict[str, str]:
    """Return the sections of a script's header by title; the purpose has the title ''."""
    comment = re.match(r"(?:--.*\n)+", source)
    assert comment, "the script begins with a comment"
    text = " ".join(line.removeprefix("--").strip() for line in comment[0].splitlines())
    purpose, *parts = re.split(r"\b(Arguments|Keys|Returns|Events): ", text)
    return {"": purpose} | dict(zip(parts[::2], parts[1::2], strict=True))


def documented_arguments(source: str) -> list[str]:
    """Return the named arguments of a header, without explanations and without repeated arguments."""
    text = re.split(":|, then ", re.sub(r"\([^)]*\)", "", header(source)["Arguments"]))[0]
    names = [name.strip(" .") for name in text.split(",")]
    return [] if names == ["none"] else names


def unpacked_arguments(source: str) -> list[str]:
    """Return the names to which a script assigns its arguments. Fails for a gap in their indices."""
    names: list[str] = []
    for variables, first, last in UNPACK.findall(source):
        assert int(first) == FIRST_ARGUMENT + len(names), "each call of unpack continues the one before it"
        names += variables.split(", ")
        assert not last or int(last) == FIRST_ARGUMENT + len(names) - 1, "each value has a name"
    return names


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_header_names_the_arguments_in_the_order_in_which_they_are_unpacked(name: str) -> None:
    """Callers pass arguments by position, so a wrong order in the header is a wrong call."""
    source = SCRIPTS[name]
    assert documented_arguments(source) == unpacked_arguments(source)
    assert not re.search(r"ARGV\[\d", source), "no argument is read by its index"


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_header_has_every_section(name: str) -> None:
    """Readers find the purpose, arguments, keys, result and events of each script in one place."""
    sections = header(SCRIPTS[name])
    assert list(sections) == ["", "Arguments", "Keys", "Returns", "Events"]
    assert all(text.strip() for text in sections.values())
