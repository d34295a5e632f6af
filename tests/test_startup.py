"""What makes processes start sooner, and which libraries each of them imports."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from ourvidz.startup import collector_paused, hidden

MEDIA = (
    *("torch", "diffusers", "transformers", "compel", "cv2", "numpy", "av", "PIL"),
    "ourvidz.wiring.models",
)
"""The libraries of models and media, and the module that imports them."""

TERMINAL = ("flower", "prompt_toolkit", "rich")
"""Libraries that other programs of this installation use."""

WORKER_PARENT = """
from ourvidz.cli import worker
worker.celery_application().finalize()
"""
SENDER = "control.current().callback_sender"
ROLES = {
    "up": "import ourvidz.cli.up, ourvidz.cli.shim, ourvidz.wiring.control",
    "web": "from ourvidz.cli import worker\nfrom ourvidz.web import serve\nserve.create_app()",
    "keeper": "from ourvidz.cli import worker\nfrom ourvidz.keeper import process\nprocess.duties()",
    "io": "from ourvidz.cli import worker\nfrom ourvidz.delivery import control\n" + SENDER,
    "sdxl": WORKER_PARENT,
    "wan": WORKER_PARENT,
    "chat": WORKER_PARENT,
}
"""Role → what its process imports before its first message; for GPU workers, what the parent imports."""


def imported(code: str, libraries: tuple[str, ...], **variables: str) -> list[str]:
    """Which of these libraries a new interpreter has imported after running `code`."""
    code += f"\nimport sys; print(*(name for name in {libraries!r} if name in sys.modules))"
    env = os.environ | {"OURVIDZ_STATE_DIR": os.devnull, **variables}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.system
@pytest.mark.parametrize("role", ROLES)
def test_the_control_roles_import_no_library_of_models_or_media(role: str) -> None:
    """Each of these libraries costs memory in every process that imports it, and time at every start."""
    variables = {} if role == "up" else {"OURVIDZ_WORKER": role}
    assert imported(ROLES[role], MEDIA, **variables) == []


@pytest.mark.system
def test_the_io_process_imports_no_celery() -> None:
    """It consumes no tasks."""
    assert imported(ROLES["io"], ("celery", "kombu"), OURVIDZ_WORKER="io") == []


@pytest.mark.system
@pytest.mark.parametrize("role", ["web", "keeper", "io", "sdxl"])
def test_a_process_without_a_terminal_imports_no_library_for_one(role: str) -> None:
    """structlog imports rich where it is installed, Celery's command line prompt_toolkit and Flower."""
    assert imported(ROLES[role], TERMINAL, OURVIDZ_WORKER=role) == []


def test_a_library_that_was_hidden_can_be_imported_afterwards() -> None:
    """The command line draws its tables with the library that logging does without."""
    code = "from ourvidz import log\nimport rich.table"
    assert imported(code, ("rich.table",)) == ["rich.table"]


def test_a_hidden_library_looks_as_if_it_were_not_installed() -> None:
    """So that a library with an optional dependency does without it."""
    code = (
        "from ourvidz.startup import hidden\n"
        "with hidden('wave'):\n"
        "    try: import wave\n"
        "    except ImportError: pass"
    )
    assert imported(code, ("wave",)) == []


def test_a_library_that_is_imported_already_stays_visible() -> None:
    """Modules that use it must not lose it."""
    with hidden("gc"):
        import gc as again
    assert again is gc


def test_nothing_is_collected_while_libraries_are_imported() -> None:
    """Inner contexts leave the collector to the outermost one."""
    with collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_collector_runs_again_after_an_import_that_failed() -> None:
    """A process that lives on without one would grow."""
    with pytest.raises(ImportError), collector_paused():
        raise ImportError
    assert gc.isenabled()


def test_what_was_imported_is_never_visited_again(collector) -> None:
    """A collection of a process that holds models takes milliseconds instead of a third of a second."""
    before = collector.get_freeze_count()
    with collector_paused():
        kept = [object]
    assert collector.get_freeze_count() > before
    assert kept
