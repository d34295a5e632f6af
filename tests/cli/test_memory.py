"""`ourvidz memory` against a real shim over HTTP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner, Result

from ourvidz.cli.main import cli
from ourvidz.ledger.store import Ledger
from ourvidz.records.devices import Part
from ourvidz.settings import load_settings
from ourvidz.web.main import create_app
from ourvidz.wiring import control
from tests.factories import worker

Run = Callable[..., Result]


@pytest.fixture
def ledger(make_ledger: Callable[..., Ledger]) -> Ledger:
    """A ledger with one card, on which an idle Wan model leaves little free memory."""
    ledger = make_ledger()
    ledger.heartbeat(worker("wan", id="wan@host-gpu0"))
    parts = [Part(id="wan", mib=30_000)]
    options: dict[str, Any] = {"family": "wan", "budget_mib": 47_000, "lease_s": 10, "turn_s": 60}
    ledger.reserve_memory("host:card", "wan@host", parts, **options)
    ledger.move_resident("host:card", "wan@host", "wan", "resident", mib=30_000)
    measured = {"total_mib": 49_152, "free_mib": 4_000, "budget_mib": 47_000}
    ledger.renew_memory("host:card", "wan@host", lease_s=10, measured=measured)
    return ledger


@pytest.fixture
def run(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs `ourvidz memory …` with the URL of a running shim. Messages to workers are taken for sent."""
    monkeypatch.setattr("ourvidz.dispatch.workers._send", lambda *_, **__: True)
    app = create_app(control.build(load_settings(OURVIDZ_STATE_DIR=tmp_path, _env_file=None), ledger=ledger))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        yield lambda *arguments: CliRunner().invoke(cli, ["memory", *arguments, "--url", url])
        server.should_exit = True
        thread.join()


def test_the_status_shows_who_holds_memory_and_who_waits(run: Run, ledger: Ledger) -> None:
    """In lines that fit into 80 columns, or as JSON."""
    options: dict[str, Any] = {"family": "chat", "budget_mib": 47_000, "lease_s": 10, "turn_s": 60}
    ledger.reserve_memory(
        "host:card", "chat@host", [Part(id="qwen_base", mib=20_000)], asks=["wan"], **options
    )
    shown = run("status")
    assert shown.exit_code == 0, shown.output
    assert "host:card: budget 47000, used 45152 of 49152 MiB, pressure critical" in shown.output
    assert "chat has waited 0 s for 20000 MiB, asks wan" in shown.output
    assert max(len(line) for line in shown.output.splitlines()) <= 80
    assert json.loads(run("status", "--json").output)["memory_allocation"] == {"wan": 30_000}


def test_the_report_names_a_command(run: Run) -> None:
    """What can be done about the pressure."""
    output = run("report").output
    assert "pressure: critical, free: 4000 MiB" in output
    assert "ourvidz memory unload wan" in output
    assert json.loads(run("report", "--json").output)["pressure_level"] == "critical"


def test_models_are_moved_and_pinned(run: Run, ledger: Ledger) -> None:
    """The workers that were asked are named; a model without a worker has none; a pin protects."""
    assert run("unload", "wan").output == "asked wan@host-gpu0: unload wan after the current job\n"
    assert run("load", "wan", "--force").output == "asked wan@host-gpu0: load wan after the current job\n"
    assert run("load", "qwen_base").output == "no worker with qwen_base is online\n"
    assert run("pin", "wan").output == "wan is pinned\n"
    assert ledger.device_memory("host:card").residents[0].pinned
    refused = run("unload", "wan")
    assert (refused.exit_code, "pinned" in refused.output) == (1, True)
    assert run("pin", "wan", "--off").output == "wan is not pinned\n"
    assert json.loads(run("unload", "wan", "--json").output)["asked"] == ["wan@host-gpu0"]
