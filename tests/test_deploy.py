"""The files in `deploy` for supervisors: what they run, and how long they wait."""

from __future__ import annotations

import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from campaigns.units import Unit
from ourvidz.cli.stack import HAND_BACK_S
from ourvidz.cli.worker import FAMILIES, HELPERS

DEPLOY = Path(__file__).parents[1] / "deploy"
UNITS = DEPLOY / "systemd"


def supervisord_config() -> ConfigParser:
    config = ConfigParser(interpolation=None)
    config.read(DEPLOY / "supervisord/supervisord.conf")
    return config


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """`systemd-analyze` exits with 0 on unknown keys, and reports them on standard error."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed: the units are not verified")
    template = (UNITS / "ourvidz-worker@.service").read_text()
    service = tmp_path / "ourvidz-worker@sdxl.service"
    service.write_text(template.replace("/opt/ourvidz/bin/ourvidz", "/bin/true"))
    target = shutil.copy(UNITS / "ourvidz.target", tmp_path)
    run = subprocess.run((analyze, "verify", service, target), capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_systemd_waits_longer_than_a_worker_drains() -> None:
    """A worker that is killed while it drains loses an attempt."""
    unit = Unit.load(UNITS / "ourvidz-worker@.service", "keeper")
    assert unit.command == ("/opt/ourvidz/bin/ourvidz", "worker", "keeper")
    assert unit.kill_mode == "mixed"
    assert unit.timeout_stop_s >= float(unit.environment["OURVIDZ_DRAIN_S"]) + HAND_BACK_S


def test_a_unit_can_use_its_gpu() -> None:
    """These settings would hide its devices, or forbid the code that CUDA compiles at run time."""
    lines = (UNITS / "ourvidz-worker@.service").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines if not line.startswith("#")}
    hides = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"}
    assert names & hides == set()


def test_an_environment_file_makes_a_second_worker_of_a_family() -> None:
    """One instance for each GPU."""
    unit = Unit.load(UNITS / "ourvidz-worker@.service", "sdxl-1", overrides={"PROCESS": "sdxl"})
    assert unit.command[-1] == "sdxl"


def test_supervisord_runs_every_process_and_waits_longer_than_it_drains() -> None:
    """A program for each process of the Procfile but Flower, stopped alike."""
    config = supervisord_config()
    programs = {name.removeprefix("program:"): config[name] for name in config if name.startswith("program:")}
    assert programs.keys() == {*FAMILIES, *HELPERS}
    (drain,) = (
        entry.partition("=")[2].strip('"')
        for entry in config["supervisord"]["environment"].split(",")
        if entry.startswith("OURVIDZ_DRAIN_S=")
    )
    for name, program in programs.items():
        assert program["command"] == f"/opt/ourvidz/bin/ourvidz worker {name}"
        assert program["stopsignal"] == "TERM"
        assert program.get("stopasgroup") is None
        assert program.getfloat("stopwaitsecs") >= float(drain) + HAND_BACK_S
