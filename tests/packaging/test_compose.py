"""`deploy/compose.yaml`: its schema, its settings, its commands, and the Redis server that it starts."""

from __future__ import annotations

import json
import re
import secrets
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from campaigns.images import WRITABLE
from ourvidz.cli import broker_checks
from ourvidz.cli.main import cli
from ourvidz.cli.stack import HAND_BACK_S
from ourvidz.cli.worker import FAMILIES, HELPERS
from ourvidz.embedded_redis import PrivateServer, find_server
from ourvidz.settings import Settings, load_settings
from tests.packaging.conftest import ROOT

COMPOSE = ROOT / "deploy/compose.yaml"
EXAMPLE = ROOT / "deploy/compose.env.example"
SETTINGS = {str(field.validation_alias) for field in Settings.model_fields.values()}
VALUES = {
    "REDIS_PASSWORD": secrets.token_hex(32),
    "IMAGE_TAG": "1",
    "OURVIDZ_API_KEYS": f"backend:{secrets.token_hex(32)}:jobs+chat",
    "SUPABASE_SERVICE_KEY": secrets.token_hex(32),
    "JOB_CALLBACK_SECRET": secrets.token_hex(32),
}
"""What an operator fills in."""
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class ProtectedServer(PrivateServer):
    """A server that requires the password of the file."""

    def database(self, number: int) -> str:
        """The URL of one of the databases, with the password."""
        return super().database(number).replace("//", f"//default:{VALUES['REDIS_PASSWORD']}@")


def example() -> dict[str, str]:
    """The settings file, filled in."""
    lines = [line for line in EXAMPLE.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines) | VALUES


def interpolated(text: str) -> str:
    """A text as Compose reads it: with the values of the file, or the default of a variable."""
    values = example()

    def value(match: re.Match[str]) -> str:
        name, kind, default = match.groups()
        assert values.get(name) or kind == "-", f"{name} is neither in {EXAMPLE.name} nor has it a default"
        return values.get(name) or default

    return VARIABLE.sub(value, text)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The parsed file."""
    parsed: dict[str, Any] = yaml.safe_load(interpolated(COMPOSE.read_text()))
    return parsed


def ours(project: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The services that run our own programs, but for Flower."""
    return {name: service for name, service in project["services"].items() if name in (*FAMILIES, *HELPERS)}


def test_the_file_follows_the_compose_specification(project: dict[str, Any]) -> None:
    """A misspelt key is an error there and would be one on the host."""
    import jsonschema  # not earlier: it compiles grammars for a second

    if find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed (pip install 'ourvidz[dev]')")
    file = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(file.read_text())
    jsonschema.validate(project, schema)
    project["services"]["web"]["port"] = []
    with pytest.raises(jsonschema.ValidationError, match="port"):
        jsonschema.validate(project, schema)
    del project["services"]["web"]["port"]


def test_every_process_has_a_service_with_its_command(project: dict[str, Any]) -> None:
    """All processes of the Procfile; one in each container."""
    procfile = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
    services = project["services"]
    assert services.keys() == {*procfile, "redis", "models", "prometheus", "grafana"}
    for name in ours(project):
        assert " ".join(services[name]["command"]) == procfile[name] == f"ourvidz worker {name}"
    placed = re.compile(r" --(address|port)=\S+")
    assert placed.sub("", " ".join(services["flower"]["command"])) == placed.sub("", procfile["flower"])
    optional = {name for name, service in services.items() if "profiles" in service}
    assert optional == {"flower", "models", "prometheus", "grafana"}
    assert "OURVIDZ_FLOWER_LOGIN" in example(), "without it the service flower does not start"


def test_checkpoints_are_pulled_to_where_the_workers_read_them(project: dict[str, Any]) -> None:
    """`ourvidz models pull` stores a checkpoint in the folder that its own setting names."""
    pull, worker = project["services"]["models"], project["services"]["sdxl"]
    assert pull["command"] == ["ourvidz", "models", "pull"]
    assert isinstance(cli.get_command(click.Context(cli), "models"), click.Group)
    assert pull["image"] == worker["image"]
    assert pull["environment"] == worker["environment"]
    folder = worker["environment"]["OURVIDZ_SDXL_MODEL"].rpartition("/")[0]
    (written,) = (volume for volume in pull["volumes"] if volume.endswith(f":{folder}"))
    assert f"{written}:ro" in worker["volumes"]


def test_every_setting_exists_and_the_example_is_a_valid_configuration(project: dict[str, Any]) -> None:
    """The processes of the file start with its settings and those of the example."""
    for service in ours(project).values():
        assert service["environment"].keys() <= SETTINGS
        variables = example() | service["environment"]
        chosen = {name: value for name, value in variables.items() if name in SETTINGS}
        assert load_settings(_env_file=None, **chosen).profile == "production"
    assert example().keys() - SETTINGS == {
        "IMAGE_TAG", "REDIS_PASSWORD", "MODELS_DIR", "BIND_ADDRESS", "METRICS_KEY"
    }  # fmt: skip
    used = {match[1] for match in VARIABLE.finditer(COMPOSE.read_text())}
    assert example().keys() - SETTINGS - {"METRICS_KEY"} <= used


def test_containers_wait_longer_than_a_worker_drains(project: dict[str, Any]) -> None:
    """A worker that is killed while it drains loses an attempt."""
    for service in ours(project).values():
        grace_s = float(service["stop_grace_period"].removesuffix("s"))
        assert grace_s >= float(service["environment"]["OURVIDZ_DRAIN_S"]) + HAND_BACK_S


def test_containers_are_read_only_and_unprivileged(project: dict[str, Any]) -> None:
    """With the folders that the images need to write."""
    for name, service in ours(project).items():
        assert service["read_only"] is True
        assert (service["cap_drop"], service["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
        assert "privileged" not in service
        mounts = [*service["tmpfs"], *(volume.partition(":")[2] for volume in service["volumes"])]
        assert {mount.partition(":")[0] for mount in mounts} >= set(WRITABLE), name
    for name, service in project["services"].items():
        copied = [*service.get("configs", ()), *service.get("secrets", ())]
        assert not (service.get("read_only") and copied), f"Compose cannot copy {copied} into {name}"
        image, _, tag = service["image"].rpartition(":")
        assert image
        assert tag not in ("", "latest")
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_workers_of_one_gpu_know_it_as_the_same_one(project: dict[str, Any]) -> None:
    """A GPU's id contains the host name, and whether an owner of its memory lives is seen by its process id.

    With others, each worker would take the whole memory, or think that a living one had given it back.
    """
    workers = [project["services"][name] for name in FAMILIES]
    assert {worker["hostname"] for worker in workers} == {workers[0]["hostname"]}
    assert {worker["pid"] for worker in workers} == {"host"}
    devices = [worker["deploy"]["resources"]["reservations"]["devices"] for worker in workers]
    assert devices[0] == devices[1] == devices[2]
    assert {worker["environment"]["OURVIDZ_GPU"] for worker in workers} == {"0"}


def test_only_our_processes_reach_the_redis_server(project: dict[str, Any]) -> None:
    """Its network is internal, and no port of it is published."""
    assert project["networks"]["ledger"]["internal"] is True
    reach = {name for name, service in project["services"].items() if "ledger" in service["networks"]}
    assert reach == {*ours(project), "redis", "flower"}
    assert "ports" not in project["services"]["redis"]


def test_the_redis_server_of_the_file_passes_doctor(project: dict[str, Any], tmp_path: Path) -> None:
    """Its options, on a real server: a password, an append-only file, and no eviction."""
    program, *options = project["services"]["redis"]["command"]
    assert program == "valkey-server"
    server = ProtectedServer(*options, binary=find_server(None), folder=tmp_path)
    server.start()
    try:
        settings = load_settings(_env_file=None, OURVIDZ_REDIS_URL=server.url)
        assert broker_checks.check_broker(settings).status == "ok"
        durability = broker_checks.check_durability(settings)
        assert (durability.status, "append-only file" in durability.reason) == ("ok", True), durability
    finally:
        server.kill()


def test_the_commands_of_the_guides_name_what_the_file_has(project: dict[str, Any]) -> None:
    """Files, services and profiles of the `docker compose` commands exist; no runtime executes them here."""
    fences = re.compile(r"^docker compose (.*)$", re.MULTILINE)
    commands = [
        match[1].split()
        for name in ("compose.md", "upgrade.md")
        for match in fences.finditer((ROOT / "docs/how-to" / name).read_text())
    ]
    profiles = {each for service in project["services"].values() for each in service.get("profiles", ())}
    assert commands
    for command in commands:
        assert command[:4] == ["--env-file", "compose.env", "--file", "deploy/compose.yaml"]
        rest = [word for word in command[4:] if word not in ("--detach", "--wait", "--no-deps")]
        if rest[0] == "--profile":
            assert rest[1] in profiles
            rest = rest[2:]
        assert rest[0] in ("up", "exec", "run")
        names = rest[1:2] if rest[0] == "exec" else [word for word in rest[1:] if word != "--rm"]
        assert set(names) <= project["services"].keys()
    restarted = [command[-1] for command in commands if "--no-deps" in command]
    assert restarted == ["io", "sdxl", "wan", "chat", "web"], "who repairs first, the shim last"
