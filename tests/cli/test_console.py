"""Tables on a terminal: they fit its width, and lose nothing."""

from __future__ import annotations

import pytest

from ourvidz.cli.console import TableRow, format_table

HEADER = ("name", "state", "reason")
REASON = "the server does not answer, and its log file does not say why: check the network and the firewall"
PATH = "/a/path/that/is/longer/than/the/whole/line/and/must/stay/in/one/piece/to/be/copied/model.safetensors"


def table(*rows: TableRow, width: int = 80) -> list[str]:
    return format_table(HEADER, rows, width=width, colours={})


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_long_last_cell_wraps_under_its_column(width: int) -> None:
    """All words are there, in order, and no line is wider than the terminal."""
    header, *lines = table(TableRow(("broker", "failed", REASON)), width=width)
    column = header.index("reason")
    assert all(len(line) <= width for line in lines)
    assert [line[:column].strip() for line in lines[1:]] == [""] * (len(lines) - 1)
    assert " ".join(line[column:] for line in lines) == REASON


def test_a_word_is_never_split() -> None:
    """A path that is too long for its column stands on a line of its own, so that it can be copied."""
    for row in (TableRow(("sdxl", "failed", f"missing: {PATH}")), TableRow(("sdxl", "failed", ""), (PATH,))):
        _, first, *rest = table(row)
        assert first.split() == ["sdxl", "failed"]
        assert PATH in [line.strip() for line in rest]


def test_details_are_indented_and_wrap() -> None:
    """They use the whole width, not that of a column."""
    _, first, *details = table(TableRow(("broker", "failed", "no"), (REASON,)))
    assert first.split() == ["broker", "failed", "no"]
    assert all(line.startswith("    ") and len(line) <= 80 for line in details)
    assert " ".join(line.strip() for line in details) == REASON


def test_columns_are_aligned_and_one_long_cell_does_not_widen_them() -> None:
    """An id of 200 characters must not push every row to the right."""
    header, first, second = table(TableRow(("a", "ok", "x")), TableRow(("i" * 200, "ok", "y")))
    assert header.index("state") == first.index("ok") == 42
    assert second == f"{'i' * 200}  ok     y"


def test_a_colour_changes_no_width() -> None:
    """Escape codes have no width on a terminal."""
    plain = format_table(HEADER, [TableRow(("a", "ok", "x"))], width=80, colours={})
    coloured = format_table(HEADER, [TableRow(("a", "ok", "x"))], width=80, colours={"ok": "green"})
    assert [line.replace("\x1b[32m", "").replace("\x1b[0m", "") for line in coloured] == plain
    assert coloured != plain


def test_an_empty_header_has_no_line() -> None:
    """A list of fields has names on the left and needs no header."""
    assert format_table((), [TableRow(("name", "value"))], width=80, colours={}) == ["name  value"]
