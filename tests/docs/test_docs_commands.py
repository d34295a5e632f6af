"""Every command in the documentation is run, against one real stack or by whoever is named here."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ourvidz.settings import environment

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]
START = "a_stack_makes_a_picture_tells_its_caller_and_leaves_nothing_behind"
ELSEWHERE = {
    "scripts/demo": "tests/docs/test_docs_commands.py::test_the_demo_makes_its_pictures",
    "scripts/test": "whoever runs this test",
    "scripts/lint": "whoever runs the tests: the other half of what CI runs",
    "ourvidz up --state-dir ./state": f"tests/system/test_up.py::test_{START}",
    "ourvidz up --state-dir ./state --port 7860 --no-flower": f"tests/system/test_up.py::test_{START}",
    "ourvidz worker sdxl": f"tests/system/test_up.py::test_{START}",
    "ourvidz demo --json": "tests/docs/test_docs_commands.py::test_the_demo_makes_its_pictures",
}
"""Command → who runs it. A block made of such commands only is not run here."""
DRAWN = {"README.md"}
"""Pages with a drawing in a block without a language."""
BLOCK_S = 120

OpenPage = Callable[[str], Any]


def executable(page: Any) -> list[str]:
    """The bash blocks that nobody else runs."""
    blocks = [block.text.strip() for block in page.blocks("bash")]
    return [text for text in blocks if not all(line in ELSEWHERE for line in text.splitlines())]


def make_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="module")
def surroundings(docs_stack: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Where commands run: this checkout's `ourvidz`, a curl that fails on errors, the pages' variables."""
    folder = tmp_path_factory.mktemp("reader")
    make_script(folder / "bin/ourvidz", f'#!/bin/sh\nexec "{sys.executable}" -m ourvidz.cli.main "$@"\n')
    (folder / ".curlrc").write_text("fail\nshow-error\nmax-time = 120\n")
    docs_stack.submit("told")
    docs_stack.wait_done("told")
    docs_stack.wait_callbacks("told", "processing", "completed")
    workers = docs_stack.get("/health").json()["workers"]
    event = docs_stack.wait_for(lambda: docs_stack.ledger.letters("delivered", 1), "no delivered callback")
    env = environment(
        PATH=f"{folder / 'bin'}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        PYTHONPATH=str(ROOT),
        CURL_HOME=str(folder),
        OURVIDZ_STATE_DIR=str(docs_stack.state_dir),
        SHIM=docs_stack.shim,
        WORKER=next(worker["id"] for worker in workers if worker["queue"] == "sdxl_queue"),
        EVENT=event[0].event_id,
    )
    return {"env": env, "cwd": folder, "capture_output": True, "text": True, "timeout": BLOCK_S}


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_works(page: OpenPage, surroundings: dict[str, Any], name: str) -> None:
    """Top to bottom, as a reader would type them; a curl that is answered with an error fails too."""
    blocks = executable(page(name))
    for tool in ("curl", "openssl"):
        if any(tool in text for text in blocks) and not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    for text in blocks:
        run = subprocess.run(["bash", "-euo", "pipefail", "-c", text], **surroundings)
        assert run.returncode == 0, f"{text}\n--- exit status {run.returncode}\n{run.stdout}\n{run.stderr}"


@pytest.mark.system
def test_the_demo_makes_its_pictures(tmp_path: Path) -> None:
    """`ourvidz demo --json`, which is what `scripts/demo` does once its environment is made."""
    run = subprocess.run(
        [sys.executable, "-m", "ourvidz.cli.main", "demo", "--json"],
        env=environment(PYTHONPATH=str(ROOT)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    made = {path.name: path for path in (tmp_path / "ourvidz-demo").iterdir()}
    assert set(made) == {Path(file).name for file in (*told["files"], told["grid"])}
    assert len(made) == 2 * len(told["pictures"]) + 1
    assert told["callbacks"] == ["processing", "completed"]
    shown = Image.open(made["grid.png"])
    assert shown.width * shown.height > len(told["pictures"]) * 256 * 256


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_marked_as_bash(page: OpenPage, name: str) -> None:
    """A block in another shell's name, or in none, would escape being run."""
    known = {"bash", "json", "python", "text"}
    assert {block.language for block in page(name).blocks()} - known <= ({""} if name in DRAWN else set())


def test_whoever_runs_a_command_elsewhere_exists(page: OpenPage) -> None:
    """The table names real tests and real scripts, and no command that no page shows any more."""
    shown = {line for name in PAGES for b in page(name).blocks("bash") for line in b.text.splitlines()}
    assert set(ELSEWHERE) <= shown
    for command, runner in ELSEWHERE.items():
        if "::" in runner:
            path, _, test = runner.partition("::")
            assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), runner
        if command.startswith("scripts/"):
            assert (ROOT / command).stat().st_mode & stat.S_IXUSR, command
