"""What a campaign starts is stopped again."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns.resource import Resource


class Service(Resource):
    """Opens two parts, and fails after the first one if it is told to."""

    def __init__(self, folder: Path, *, fails: bool = False) -> None:
        super().__init__()
        self.closed: list[str] = []
        self._folder = folder
        self._fails = fails

    def _open(self) -> None:
        self._cleanup.callback(self.closed.append, "first")
        if self._fails:
            raise TimeoutError("the second part does not start")
        self._cleanup.callback(self.closed.append, "second")

    def logs(self) -> list[Path]:
        return [self._folder / "service.log", self._folder / "never.log"]


def test_the_last_that_was_opened_is_closed_first(tmp_path: Path) -> None:
    """A client before its server."""
    with Service(tmp_path) as service:
        assert service.closed == []
    assert service.closed == ["second", "first"]


def test_what_was_opened_before_a_failure_is_closed(tmp_path: Path) -> None:
    """Else a campaign that cannot start leaves servers behind. The log says why."""
    (tmp_path / "service.log").write_text("\n".join(map(str, range(100))))
    service = Service(tmp_path, fails=True)
    with pytest.raises(TimeoutError) as raised, service:
        pass
    assert service.closed == ["first"]
    (note,) = raised.value.__notes__
    assert note.splitlines()[0] == "--- service.log"
    assert note.splitlines()[1:] == [str(number) for number in range(75, 100)]


def test_an_error_inside_gets_the_logs_as_a_note(tmp_path: Path) -> None:
    """And everything is closed."""
    service = Service(tmp_path)
    with pytest.raises(ValueError, match="no answer") as raised, service:
        raise ValueError("no answer")
    assert service.closed == ["second", "first"]
    assert not hasattr(raised.value, "__notes__"), "no log, no note"
