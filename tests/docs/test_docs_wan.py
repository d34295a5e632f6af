"""The section about `wan_generate.py` lists the flags, tasks and exit statuses of the script."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ourvidz.cli.wan.command import EXITS, command
from ourvidz.cli.wan.tasks import TASKS

CLI = "docs/reference/cli.md"

OpenPage = Callable[[str], Any]


def test_every_flag_is_documented_with_its_default_and_no_other(page: OpenPage) -> None:
    """The table has every flag of the Wan release with its default."""
    documented = {
        flag: default.strip("`")
        for flags, default in (row[:2] for row in page(CLI).rows("flag", "default"))
        for flag in re.findall(r"--[a-z0-9_]+", flags)
    }
    actual = {name: parameter for parameter in command.params for name in parameter.opts}
    assert set(documented) == set(actual)
    shown = {name: default for name, default in documented.items() if re.fullmatch(r"-?[\d.]+|True", default)}
    assert shown == {name: str(actual[name].default) for name in shown}
    assert {"--sample_shift", "--sample_guide_scale", "--base_seed"} <= set(shown)


def test_every_task_is_documented(page: OpenPage) -> None:
    """The table of tasks has their sizes, frames and steps."""
    documented = {row[0].strip("`"): row[1:] for row in page(CLI).rows("task", "sizes")}
    actual = {
        name: [", ".join(task.sizes).replace("*", r"\*"), str(task.frames), str(task.steps)]
        for name, task in TASKS.items()
    }
    assert documented == actual


def test_every_exit_status_is_documented(page: OpenPage) -> None:
    """Calling scripts branch on the exit status."""
    section = page(CLI).section("`wan_generate.py`")
    documented = {int(status) for status in re.findall(r"^\| (\d) \|", section, re.MULTILINE)}
    assert documented == {0, 1, *(status for _, status in EXITS)}
