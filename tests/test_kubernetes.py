"""The manifests in `deploy/kubernetes`: valid, and consistent with our settings and our routes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from click.testing import CliRunner

from ourvidz.autoscaling.configuration import policy_for
from ourvidz.cli.main import cli
from ourvidz.cli.stack import HAND_BACK_S
from ourvidz.cli.worker import FAMILIES, HELPERS, check_models
from ourvidz.jobs.catalog import QUEUES, of_family
from ourvidz.settings import Settings, load_settings
from ourvidz.web.auth import load_keyring
from ourvidz.web.autoscale import Scale
from ourvidz.web.main import create_app
from ourvidz.wiring import control

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="the manifests are not validated")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/kubernetes"
HOW_TO = ROOT / "docs/how-to/kubernetes.md"
OLDEST, NEWEST = "1.27", "1.37"
KEDA = json.loads(Path(__file__).with_name("keda.json").read_text())
"""The fields of KEDA's resources that the manifests may have, by kind."""
VARIABLES = {str(field.validation_alias) for field in Settings.model_fields.values()}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every document with the name of its file."""
    for path in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document


DOCUMENTS = list(documents())


def of_kind(kind: str) -> dict[str, Any]:
    """The documents of a kind by name."""
    return {one["metadata"]["name"]: one for _, one in DOCUMENTS if one["kind"] == kind}


PODS = {
    name: document["spec"]["template"]["spec"]
    for kind in ("Deployment", "Job")
    for name, document in of_kind(kind).items()
}


def secret_settings() -> dict[str, str]:
    """The secret settings that the guide names, with their examples."""
    (block,) = re.findall(r'```text title="secrets.env"\n(.*?)```', HOW_TO.read_text(), re.DOTALL)
    return dict(line.split("=", 1) for line in block.splitlines())


def random_key(example: str) -> str:
    """A key in place of an example, which the shim refuses: it can be guessed."""
    return hashlib.sha256(example.encode()).hexdigest()


def container_of(name: str) -> dict[str, Any]:
    """The one container of a pod."""
    (container,) = PODS[name]["containers"]
    return dict(container)


def settings_of(name: str) -> Settings:
    """The settings of a pod, as its process reads them."""
    own = {entry["name"]: entry["value"] for entry in container_of(name).get("env", [])}
    text = {**of_kind("ConfigMap")["ourvidz"]["data"], **secret_settings(), **own}
    text["OURVIDZ_API_KEYS"] = re.sub(
        r"[A-Z-]+-KEY", lambda key: random_key(key[0]), text["OURVIDZ_API_KEYS"]
    )
    values = {key: json.loads(value) if value.startswith("{") else value for key, value in text.items()}
    return load_settings(_env_file=None, **values)


@pytest.mark.parametrize(("file", "document"), DOCUMENTS, ids=[f"{f} {d['kind']}" for f, d in DOCUMENTS])
def test_every_document_has_only_fields_that_exist(file: str, document: dict[str, Any]) -> None:
    """Kubernetes drops unknown fields without an error, and the pod runs without them."""
    import jsonschema  # not earlier: it compiles grammars for a second

    if document["kind"] in KEDA:
        jsonschema.validate(document, KEDA[document["kind"]])
    else:
        kubernetes_validate.validate(document, OLDEST, strict=True)


@pytest.mark.parametrize("kind", sorted({document["kind"] for _, document in DOCUMENTS} - KEDA.keys()))
def test_the_newest_version_has_these_fields_too(kind: str) -> None:
    """One document of each kind: those of a kind have the same fields."""
    kubernetes_validate.validate(next(iter(of_kind(kind).values())), NEWEST, strict=True)


@pytest.mark.parametrize(("file", "document"), DOCUMENTS, ids=[f"{f} {d['kind']}" for f, d in DOCUMENTS])
def test_everything_is_in_one_namespace(file: str, document: dict[str, Any]) -> None:
    """And deleted with it."""
    if document["kind"] != "Namespace":
        assert document["metadata"]["namespace"] in of_kind("Namespace")


@pytest.mark.parametrize("name", of_kind("Job"))
def test_a_job_stands_in_the_way_of_no_update(name: str) -> None:
    """Its template cannot be changed: `kubectl apply` with a new image fails while the old job is there."""
    assert of_kind("Job")[name]["spec"]["ttlSecondsAfterFinished"] <= 3600
    _, _, updates = HOW_TO.read_text().partition("## Updates")
    assert f"kubectl -n ourvidz delete job {name} --ignore-not-found" in updates


def test_every_process_has_a_deployment() -> None:
    """Those of the Procfile but Flower."""
    assert of_kind("Deployment").keys() == {f"ourvidz-{name}" for name in (*FAMILIES, *HELPERS)}
    for name in (*FAMILIES, *HELPERS):
        assert container_of(f"ourvidz-{name}")["args"] == ["ourvidz", "worker", name]


def commands() -> Iterator[list[str]]:
    """Yield the commands of all containers and probes."""
    for name in PODS:
        container = container_of(name)
        yield container["args"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            action = container.get(probe, {}).get("exec")
            if action:
                yield action["command"]


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_command_exists(command: list[str]) -> None:
    """With its options."""
    program, *arguments = command
    assert program == "ourvidz"
    result = CliRunner().invoke(cli, [*arguments, "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", PODS)
def test_every_variable_is_a_setting_with_a_valid_value(name: str) -> None:
    """A misspelt one would be ignored."""
    data = of_kind("ConfigMap")["ourvidz"]["data"]
    own = {entry["name"] for entry in container_of(name).get("env", [])}
    assert data.keys() | secret_settings().keys() | own <= VARIABLES
    settings = settings_of(name)
    assert settings.profile == "production"
    assert not load_keyring(settings).empty
    family = name.removeprefix("ourvidz-")
    if family in FAMILIES:
        check_models(family, settings)


def test_no_secret_is_in_a_file() -> None:
    """The guide creates them, under the names that the manifests use."""
    assert of_kind("Secret") == {}
    assert not secret_settings().keys() & of_kind("ConfigMap")["ourvidz"]["data"].keys()
    created = set(re.findall(r"create secret generic (\S+)", HOW_TO.read_text()))
    used = {
        source["secretRef"]["name"]
        for name in PODS
        for source in container_of(name)["envFrom"]
        if "secretRef" in source
    }
    for document in of_kind("TriggerAuthentication").values():
        used |= {reference["name"] for reference in document["spec"]["secretTargetRef"]}
    assert used == created
    (token,) = re.findall(r"--from-literal=token=(\S+)", HOW_TO.read_text())
    assert load_keyring(settings_of("ourvidz-web")).secret_for("read") == random_key(token)


@pytest.mark.parametrize("name", PODS)
def test_what_a_pod_names_exists(name: str) -> None:
    """Settings, volumes and claims."""
    pod, container = PODS[name], container_of(name)
    configs = {one["configMapRef"]["name"] for one in container["envFrom"] if "configMapRef" in one}
    assert configs <= of_kind("ConfigMap").keys()
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    claims = {one["persistentVolumeClaim"]["claimName"] for one in volumes.values() if len(one) and
              "persistentVolumeClaim" in one}  # fmt: skip
    assert claims <= of_kind("PersistentVolumeClaim").keys()


@pytest.mark.parametrize("name", PODS)
def test_a_pod_may_do_nothing_that_it_need_not(name: str) -> None:
    """And writes only where its volumes are; service variables stay out of its settings."""
    pod, container = PODS[name], container_of(name)
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    settings = settings_of(name)
    written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert {str(settings.state_dir), str(settings.beats_dir), "/tmp"} <= written
    assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("kind", ["Deployment", "PodDisruptionBudget"])
def test_selectors_select_their_pods(kind: str) -> None:
    """A budget that selects nothing protects nothing."""
    labels = {
        name: document["spec"]["template"]["metadata"]["labels"]
        for name, document in of_kind("Deployment").items()
    }
    selected = {name: document["spec"]["selector"]["matchLabels"] for name, document in of_kind(kind).items()}
    assert selected == labels


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stopped_worker_finishes_its_longest_job(family: str) -> None:
    """Scaling down, an update and a drained node cost no attempt."""
    name = f"ourvidz-{family}"
    pod, settings = PODS[name], settings_of(name)
    longest_s = max(settings.time_limits_s.get(row.name, row.time_limit_s) for row in of_family(family))
    (_, pause) = container_of(name)["lifecycle"]["preStop"]["exec"]["command"]
    assert settings.drain_s >= longest_s + 10
    assert pod["terminationGracePeriodSeconds"] >= float(pause) + settings.drain_s + HAND_BACK_S + 10
    assert container_of(name)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert settings.gpu == "0"


def test_a_stopped_shim_serves_the_callers_that_wait() -> None:
    """After the pause in which the endpoints forget it."""
    (_, pause) = container_of("ourvidz-web")["lifecycle"]["preStop"]["exec"]["command"]
    settings = settings_of("ourvidz-web")
    grace_s = PODS["ourvidz-web"]["terminationGracePeriodSeconds"]
    assert grace_s >= float(pause) + settings.sync_limit_s + 10
    port = container_of("ourvidz-web")["ports"][0]["containerPort"]
    assert (settings.host, settings.ports) == ("0.0.0.0", (port,))


def test_the_probes_of_the_shim_succeed_without_a_worker(make_ledger: Any) -> None:
    """A shim that is not ready at zero workers could not be asked for the first one."""
    from starlette.testclient import TestClient

    settings = load_settings(_env_file=None, OURVIDZ_API_KEYS="keda:key:read")
    with TestClient(create_app(control.build(settings, ledger=make_ledger()))) as client:
        assert client.get("/health/ready").status_code == 503
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            path = container_of("ourvidz-web")[probe]["httpGet"]["path"]
            assert client.get(path).status_code == 200
        for document in of_kind("ScaledObject").values():
            (trigger,) = document["spec"]["triggers"]
            path = urlsplit(trigger["metadata"]["url"]).path
            answer = client.get(path, headers={"Authorization": "Bearer key"})
            assert answer.json()[trigger["metadata"]["valueLocation"]] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_scaled_by_its_own_queue(family: str) -> None:
    """Within the bounds that the shim knows too, through a service that reaches it, with the key `read`."""
    name = f"ourvidz-{family}"
    document = of_kind("ScaledObject")[name]
    spec = document["spec"]
    policy = policy_for(settings_of(name), QUEUES[family])
    assert spec["scaleTargetRef"]["name"] in of_kind("Deployment")
    assert "replicas" not in of_kind("Deployment")[name]["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (policy.minimum, policy.maximum)
    (trigger,) = spec["triggers"]
    metadata = trigger["metadata"]
    service, namespace, *_ = (urlsplit(metadata["url"]).hostname or "").split(".")
    (port,) = of_kind("Service")[service]["spec"]["ports"]
    assert of_kind("Service")[service]["metadata"]["namespace"] == namespace
    assert urlsplit(metadata["url"]).port == port["port"]
    assert urlsplit(metadata["url"]).path == f"/autoscale/{QUEUES[family]}"
    # The value divided by the target is the number of pods.
    assert (trigger["metricType"], metadata["targetValue"]) == ("AverageValue", "1")
    assert metadata["valueLocation"] in Scale.model_fields
    assert trigger["authenticationRef"]["name"] in of_kind("TriggerAuthentication")
    keys = load_keyring(settings_of("ourvidz-web"))
    assert keys.secret_for("read") is not None


def test_a_fleet_at_zero_accepts_jobs_for_long() -> None:
    """A weekend without jobs must not end with refused ones."""
    settings = settings_of("ourvidz-web")
    assert settings.worker_grace_s >= 14 * 86400
    assert settings.autoscale_min == {"chat": 1}


def test_one_repository_has_one_version_of_its_images() -> None:
    """Workers and shims of one release."""
    images = {container_of(name)["image"] for name in PODS}
    assert len({image.rpartition(":")[2] for image in images}) == 1
    assert {image.rpartition("/")[2].partition(":")[0] for image in images} == {
        "ourvidz-control", "ourvidz-worker"
    }  # fmt: skip
