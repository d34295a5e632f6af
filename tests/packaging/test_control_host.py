"""A control host: the shim, io and the keeper without the libraries of models and media."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import pytest
import redis
import requests
from PIL import Image

from campaigns import images
from ourvidz.cli.libraries import INSTALL
from ourvidz.embedded_redis import free_port
from ourvidz.ledger.store import Ledger
from tests.packaging.conftest import Host

pytestmark = pytest.mark.system

MODEL_LIBRARIES = ("torch", "diffusers", "transformers", "compel", "accelerate", "safetensors")
MEDIA_LIBRARIES = ("opencv-python-headless", "numpy", "av")
PREFIX = "control-host:"
READY_S = 60.0
SMALL_BMP = (
    b"BM" + struct.pack("<IIIIiiHHIIiiII", 58, 0, 54, 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0) + b"\x80\x40\x20\0"
)
"""A picture of one pixel."""


@pytest.fixture(scope="module")
def server_url() -> str:
    """The URL of a Redis server elsewhere."""
    from ourvidz.testing import private_server

    return private_server().url


@dataclass(frozen=True)
class ControlPlane:
    """The shim, io and a keeper. `url` is that of the shim."""

    url: str
    containers: dict[str, images.Container]


@pytest.fixture(scope="module")
def control_plane(control_host: Host, server_url: str) -> Iterator[ControlPlane]:
    """The processes of the control image, with the variables of the image and on a read-only root."""
    port = free_port()
    final = images.stages(images.dockerfile("control"))[1]
    image = images.Image("control", control_host.prefix, final, packages=0, megabytes=0, seconds=0)
    variables = {
        "OURVIDZ_REDIS_URL": server_url,
        "OURVIDZ_KEY_PREFIX": PREFIX,
        "OURVIDZ_HOST": "127.0.0.1",
        "OURVIDZ_PORTS": str(port),
    }
    with ExitStack() as stack:
        containers = {}
        for name in ("keeper", "io", "web"):
            folder = control_host.folder / name
            folder.mkdir()
            containers[name] = images.Container(image, ["ourvidz", "worker", name], folder, **variables)
            stack.callback(containers[name].stop)
        url = f"http://127.0.0.1:{port}"
        ledger = stack.enter_context(closing(Ledger(server_url, prefix=PREFIX)))
        until = time.monotonic() + READY_S
        while not (_answers(url) and len(ledger.workers()) == 2):
            ended = [name for name, each in containers.items() if each.process.poll() is not None]
            assert not ended, _logs(control_host)
            assert time.monotonic() < until, _logs(control_host)
            time.sleep(0.05)
        yield ControlPlane(url, containers)


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health/live", timeout=1).ok
    except requests.ConnectionError:
        return False


def _logs(host: Host) -> str:
    return "\n".join(path.read_text() for path in host.folder.glob("*/log"))


def test_a_control_host_installs_no_library_of_models_or_media(control_host: Host) -> None:
    """They take 1.4 GB on a disk, and a host that has them needs an update whenever one of them does."""
    assert control_host.requires & {*MODEL_LIBRARIES, *MEDIA_LIBRARIES} == set()
    assert {"celery", "fastapi", "redis", "flower"} <= control_host.requires


def test_a_control_host_accepts_and_answers_jobs(control_host: Host, control_plane: ControlPlane) -> None:
    """All of what the host is for, with the installed programs: the shim, io, the keeper and the commands."""
    connection = {"OURVIDZ_URL": control_plane.url}
    job = control_host.json(
        *("ourvidz", "jobs", "submit", "--prompt", "a red circle", "--id", "control-1", "--json"),
        **connection,
    )
    assert (job["job_id"], job["status"]) == ("control-1", "queued")
    listed = control_host.json("ourvidz", "jobs", "list", "--json", **connection)
    assert [item["job_id"] for item in listed["items"]] == ["control-1"]
    picture = control_host.folder / "pond.bmp"
    picture.write_bytes(SMALL_BMP)
    submit = ("ourvidz", "jobs", "submit", "--prompt", "a pond", "--reference", str(picture), "--json")
    assert control_host.json(*submit, **connection)["status"] == "queued"
    health = requests.get(f"{control_plane.url}/health", timeout=5).json()
    assert {worker["queue"] for worker in health["workers"]} == {"io", "keeper"}


@pytest.mark.parametrize("checkpoint", [False, True], ids=["control host", "a checkpoint is here"])
def test_doctor_asks_for_the_libraries_of_models_only_where_a_checkpoint_is(
    control_host: Host, server_url: str, checkpoint: bool
) -> None:
    """Whoever has a checkpoint here wants to run a worker on this host. The settings alone do not tell: those
    of a fleet name the checkpoints and the GPU of its workers on every host."""
    settings = {
        "OURVIDZ_GPU": "0",
        "OURVIDZ_SDXL_MODEL": str(control_host.folder) if checkpoint else "/models/sdxl",
        "OURVIDZ_WAN_MODEL": "/models/wan",
        "OURVIDZ_SDXL_LORAS": "hills=/models/hills.safetensors",
    }
    with redis.Redis.from_url(server_url) as client:
        client.config_set("appendonly", "yes")
        run = control_host.run("ourvidz", "doctor", "--json", OURVIDZ_REDIS_URL=server_url, **settings)
        client.config_set("appendonly", "no")
    checks = {check["name"]: check for check in json.loads(run.stdout)}
    assert run.returncode == (1 if checkpoint else 0), run.stdout
    assert checks["torch"]["status"] == ("failed" if checkpoint else "skipped")
    assert INSTALL in (checks["torch"]["fix"] or checks["torch"]["reason"])
    assert {checks[name]["status"] for name in ("settings", "broker", "storage")} == {"ok"}


def test_every_process_of_the_image_passes_its_health_check_on_a_read_only_root(
    control_host: Host, control_plane: ControlPlane
) -> None:
    """The command of the `HEALTHCHECK`, with the variables and the writable folders of the image only."""
    for name, container in control_plane.containers.items():
        check = container.run(*container.image.final.health_check())
        assert check.returncode == 0, f"{name}: {check.stderr}"
    if not images.may_mount():
        pytest.skip("this process may not mount: the root was not read-only")
    touch = images.read_only(["touch", str(control_host.folder / "elsewhere")], [])
    assert "Read-only file system" in subprocess.run(touch, capture_output=True, text=True).stderr


def test_no_route_of_a_control_host_needs_a_library_that_it_lacks(control_plane: ControlPlane) -> None:
    """All routes that are read without parameters, the inspection of prompts, and the upload of a reference,
    which is decoded and written anew."""
    schema = requests.get(f"{control_plane.url}/openapi.json", timeout=5).json()
    paths = [path for path, methods in schema["paths"].items() if "get" in methods and "{" not in path]
    assert len(paths) > 10
    statuses = {path: requests.get(control_plane.url + path, timeout=10).status_code for path in paths}
    assert {path: status for path, status in statuses.items() if status == 500} == {}
    inspected = requests.post(
        f"{control_plane.url}/prompts/inspect", json={"prompt": "a (red:1.2) fox"}, timeout=5
    )
    assert (inspected.status_code, inspected.json()["tokens"]) == (200, None)
    assert "no library for tokenizers" in inspected.json()["note"]
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    uploaded = requests.post(
        f"{control_plane.url}/references",
        params={"user_id": "me"}, data=picture.getvalue(), headers={"content-type": "image/png"}, timeout=10,
    )  # fmt: skip
    assert uploaded.status_code in (200, 201), uploaded.text


def test_every_command_of_a_control_host_can_be_imported(control_host: Host) -> None:
    """What a command cannot do here it says when it is used, not as a traceback of an import."""
    code = (
        "from importlib import import_module\nfrom ourvidz.cli.main import COMMANDS\n"
        "for place, _ in COMMANDS.values(): import_module(place.partition(':')[0])"
    )
    done = control_host.run("python", "-c", code)
    assert done.returncode == 0, done.stderr


def test_the_help_is_printed_on_a_control_host(control_host: Host) -> None:
    """The first command of a new installation."""
    assert "Start everything" in control_host.run("ourvidz", "--help").stdout


def test_a_gpu_worker_on_a_control_host_names_the_command_that_installs_it(control_host: Host) -> None:
    """One line at the start, not a child that fails to import in a loop."""
    for command in (("worker", "sdxl"), ("up", "--no-flower")):
        refused = control_host.run("ourvidz", *command)
        assert refused.returncode == 2
        assert refused.stderr.startswith("Error: this installation has no libraries for models (torch, ")
        assert refused.stderr.endswith("pip install 'ourvidz[worker]'\n")


def test_flower_starts_on_a_control_host(control_host: Host) -> None:
    """It imports the Celery application and finds its own command."""
    done = control_host.run("celery", "-A", "ourvidz.app", "flower", "--help")
    assert done.returncode == 0, done.stderr
    assert sys.prefix not in done.stderr
