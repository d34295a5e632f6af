"""Every command in the documentation is executed: on one stack here, or by another test in `ELSEWHERE`."""

from __future__ import annotations

import json
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest
import redis
from PIL import Image

from ourvidz.hub.catalog import pullable_models
from ourvidz.ledger.store import Ledger
from ourvidz.pipelines.checkpoints import PACKAGED
from ourvidz.settings import Settings, environment, load_settings
from tests import hub_server
from tests.pipelines.weight_files import SDXL, write_sparse

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]
UP = "tests/docs/conftest.py::docs_stack"
UNITS = "tests/test_deploy.py::test_systemd_finds_nothing_wrong_with_the_units"
COMPOSE = "tests/packaging/test_compose.py::test_the_commands_of_the_guides_name_what_the_file_has"
DOCKER = "docker compose --env-file compose.env --file deploy/compose.yaml"
NEW_PIP = '"/opt/ourvidz-$VERSION/bin/pip"'
INSTALLATION = "the same steps: python -m campaigns.images, and tests/packaging for the control host"
DEPLOY = "tests/system/test_deploys.py::test_a_deploy_restarts_one_unit_at_a_time_and_charges_no_attempt"
START = "a_stack_runs_jobs_restarts_a_killed_process_and_stops_completely"
MANIFESTS = "tests/test_kubernetes.py::test_every_document_has_only_fields_that_exist"
SECRETS = "tests/test_kubernetes.py::test_no_secret_is_in_a_file"
RUNPOD_TEMPLATE = (
    'curl -s https://rest.runpod.io/v1/templates -H "Authorization: Bearer $RUNPOD_API_KEY" --json @'
)
ELSEWHERE = {
    "kubectl apply -f deploy/kubernetes/settings.yaml": MANIFESTS,
    "kubectl apply -f deploy/kubernetes": MANIFESTS,
    "kubectl -n ourvidz create secret generic ourvidz --from-env-file=secrets.env": SECRETS,
    "kubectl -n ourvidz create secret generic ourvidz-autoscaler --from-literal=token=A-THIRD-KEY": SECRETS,
    "kubectl -n ourvidz delete job ourvidz-models-pull --ignore-not-found": (
        "tests/test_kubernetes.py::test_a_job_stands_in_the_way_of_no_update"
    ),
    f"{RUNPOD_TEMPLATE}deploy/runpod/template.json": (
        "tests/test_runpod.py::test_the_template_has_only_fields_and_variables_that_exist"
    ),
    "scripts/demo": "tests/docs/test_docs_commands.py::test_the_demo_generates_its_images",
    "scripts/test": "the run of this test",
    "scripts/lint": "continuous integration, before the tests",
    "ourvidz up --state-dir ./state": f"tests/system/test_up.py::test_{START}",
    "ourvidz up --state-dir ./state --port 7860 --no-flower": f"tests/system/test_up.py::test_{START}",
    "JOB_CALLBACK_SECRET=my-secret OURVIDZ_CALLBACK_ALLOW=localhost ourvidz up --state-dir ./state": UP,
    "ourvidz flower --address 127.0.0.1 --port 5555": (
        "tests/system/test_control.py::test_flower_shows_the_tasks_without_their_prompts"
    ),
    "OURVIDZ_SDXL_MODEL=./models/my-sdxl.safetensors ourvidz up --state-dir ./state --workers sdxl": (
        "tests/pipelines/sdxl/test_single_file.py::test_a_bare_file_generates_the_images_of_its_folder_without_a_network"
    ),
    "ourvidz worker sdxl": f"tests/system/test_up.py::test_{START}",
    "install -m 644 -t /etc/systemd/system deploy/systemd/*": UNITS,
    "systemctl daemon-reload": UNITS,
    "systemctl enable --now ourvidz.target ourvidz-worker@{web,io,keeper,sdxl}": UNITS,
    "systemctl enable --now ourvidz.target ourvidz-worker@{web,io,keeper,sdxl,wan,chat}": UNITS,
    "systemctl restart ourvidz-worker@keeper ourvidz-worker@io": DEPLOY,
    "systemctl restart ourvidz-worker@sdxl": DEPLOY,
    "systemctl restart ourvidz-worker@web": DEPLOY,
    "scripts/images": "tests/packaging/test_images.py::test_the_script_builds_both_images",
    f"{DOCKER} up --detach --wait": COMPOSE,
    f"{DOCKER} run --rm models": COMPOSE,
    f"{DOCKER} exec web ourvidz doctor": COMPOSE,
    f"{DOCKER} --profile monitoring up --detach": COMPOSE,
    f"{DOCKER} up --detach --no-deps --wait keeper io": COMPOSE,
    **{f"{DOCKER} up --detach --no-deps --wait {name}": COMPOSE for name in ("sdxl", "wan", "chat", "web")},
    'python3 -m venv "/opt/ourvidz-$VERSION"': INSTALLATION,
    f"{NEW_PIP} install --require-hashes --no-deps -r deploy/images/control/requirements.txt": INSTALLATION,
    f'{NEW_PIP} install --no-deps "dist/ourvidz-$VERSION-py3-none-any.whl"': INSTALLATION,
    f"{NEW_PIP} check": INSTALLATION,
    'ln -sfn "/opt/ourvidz-$VERSION" /opt/ourvidz': INSTALLATION,
    "ourvidz rehearse": "tests/cli/test_rehearse.py::test_all_types_pass_and_nothing_is_left",
    "ourvidz demo --json": "tests/docs/test_docs_commands.py::test_the_demo_generates_its_images",
}
"""Command → the test or script that executes it. A block of such commands only is not executed here."""
PAGES_WITH_TEXT_DIAGRAMS = {"README.md", "ARCHITECTURE.md"}
"""Pages with a text diagram in a block without a language."""
BLOCK_S = 120

OpenPage = Callable[[str], Any]


def executable(page: Any) -> list[str]:
    """Return the bash blocks that are executed here."""
    blocks = [block.text.strip() for block in page.blocks("bash")]
    return [text for text in blocks if not all(line in ELSEWHERE for line in text.splitlines())]


def make_script(path: Path, text: str) -> None:
    """Write an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def write_checkpoint(models: Path) -> None:
    """Write a single file of SDXL and its configs, with weights that cannot be loaded."""
    shipped = ROOT / "ourvidz/checkpoints/tiny-sdxl"
    copytree(shipped, models / "my-sdxl.config", ignore=ignore_patterns("*.safetensors", "SHA256SUMS"))
    write_sparse(models / "my-sdxl.safetensors", SDXL)


@pytest.fixture(scope="module")
def hub_url() -> Iterator[str]:
    """The URL of a hub that has the packaged checkpoints in place of those that are pulled by default."""
    folders = {
        "sdxl": "tiny-sdxl",
        "wan": "tiny-wan",
        "qwen instruct": "tiny-qwen/instruct",
        "qwen base": "tiny-qwen/base",
    }
    models = pullable_models(load_settings(_env_file=None)).values()
    parts = {part.name: part for model in models for part in model.parts}
    with hub_server.serve() as hub:
        for name, folder in folders.items():
            part = parts[name]
            hub.add_folder(part.repository, PACKAGED / folder, part.revision)
        yield hub.url


def free_port() -> int:
    """Return a free TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def shell(
    docs_stack: Any, fast_python: Path, hub_url: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Arguments of `subprocess.run` for the commands of the pages: the `ourvidz` of this checkout, a curl
    that fails on HTTP errors, and the variables and files that the pages require."""
    folder = tmp_path_factory.mktemp("reader")
    make_script(folder / "bin/ourvidz", f'#!/bin/sh\nexec {fast_python} -m ourvidz.cli.main "$@"\n')
    make_script(folder / "bin/python", f'#!/bin/sh\nexec {fast_python} "$@"\n')
    (folder / "deploy").symlink_to(ROOT / "deploy")
    (folder / ".curlrc").write_text("fail\nshow-error\nmax-time = 120\n")
    write_checkpoint(folder / "models")
    Image.linear_gradient("L").convert("RGB").save(folder / "pond.png")
    docs_stack.submit("delivered")
    docs_stack.wait_done("delivered")
    docs_stack.wait_callbacks("delivered", "processing", "completed")
    workers = docs_stack.get("/health").json()["workers"]
    with redis.Redis.from_url(docs_stack.redis_url) as old:
        old.rpush("old_sdxl_queue", json.dumps(docs_stack.payload("moved-2")), '{"id": "moved-3"}')
        old.rpush("sdxl_queue", '{"id": "refused-1"}')
        until = time.monotonic() + BLOCK_S
        while not (refused := Ledger(docs_stack.redis_url).refused_imports()):
            assert time.monotonic() < until, "the keeper imports nothing"
            time.sleep(0.1)
    env = environment(
        PATH=f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        PYTHONPATH=str(ROOT),
        CURL_HOME=str(folder),
        OURVIDZ_STATE_DIR=str(docs_stack.state_dir),
        JOB_CALLBACK_SECRET="my-secret",
        SHIM=docs_stack.shim,
        WORKER=next(worker["id"] for worker in workers if worker["queue"] == "sdxl_queue"),
        EVENT=docs_stack.inbox("delivered")[-1]["headers"]["webhook-id"],
        ENTRY=refused[0].refused_id,
        PORT=str(free_port()),
        OLD_REDIS_URL=docs_stack.redis_url,
        HF_ENDPOINT=hub_url,
        OURVIDZ_MODELS_DIR=str(folder / "models-pulled"),
    )
    return {"env": env, "cwd": folder, "capture_output": True, "text": True, "timeout": BLOCK_S}


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_works(page: OpenPage, name: str, request: pytest.FixtureRequest) -> None:
    """The commands of a page are executed in order; a curl call with an error response fails."""
    blocks = executable(page(name))
    for tool in ("curl", "openssl"):
        if any(tool in text for text in blocks) and not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    if not blocks:
        return
    shell = request.getfixturevalue("shell")
    for block in page(name).blocks("python"):
        (shell["cwd"] / block.title).write_text(block.text)
    for text in blocks:
        run = subprocess.run(["bash", "-euo", "pipefail", "-c", text], **shell)
        assert run.returncode == 0, f"{text}\n--- exit status {run.returncode}\n{run.stdout}\n{run.stderr}"


@pytest.mark.system
def test_the_example_receiver_gets_callbacks_and_the_forwarder_forwards_jobs(
    page: OpenPage, shell: dict[str, Any], docs_stack: Any
) -> None:
    """The two example programs work, not only end without an error."""
    for name in ("docs/how-to/own-receiver.md", "docs/how-to/migration.md"):
        for block in page(name).blocks("python"):
            (shell["cwd"] / block.title).write_text(block.text)
    (receive,) = (text for text in executable(page("docs/how-to/own-receiver.md")) if "receiver.py" in text)
    text = receive.replace("receiver-1", "receiver-2")
    run = subprocess.run(["bash", "-euo", "pipefail", "-c", text], **shell)
    assert "processing []" in run.stdout
    assert "completed ['workspace-temp/me/receiver-2/0.png']" in run.stdout
    (forward,) = (text for text in executable(page("docs/how-to/migration.md")) if "forward.py" in text)
    with redis.Redis.from_url(docs_stack.redis_url, decode_responses=True) as old:
        old.delete("old_sdxl_queue", "old_sdxl_queue:refused")
        old.rpush("old_sdxl_queue", json.dumps(docs_stack.payload("moved-4")), '{"id": "moved-5"}')
        run = subprocess.run(["bash", "-euo", "pipefail", "-c", forward], **shell)
        assert old.lrange("old_sdxl_queue:refused", 0, -1) == ['{"id": "moved-5"}']
        assert old.llen("old_sdxl_queue") == 0
    assert "forwarded moved-4" in run.stdout
    assert docs_stack.wait_done("moved-4")["status"] == "completed"


@pytest.mark.system
def test_the_example_tests_of_the_page_pass_in_another_project(
    page: OpenPage, fast_python: Path, tmp_path: Path
) -> None:
    """The examples need none of this project's pytest configuration, and run where warnings are errors."""
    # `fast_python` has imported modules before pytest could rewrite their assertions.
    filters = ("error", "ignore::pytest.PytestAssertRewriteWarning")
    (tmp_path / "pytest.ini").write_text("\n    ".join(("[pytest]\nfilterwarnings =", *filters)))
    blocks = page("docs/testing.md").blocks("python")
    for block in blocks:
        (tmp_path / block.title).write_text(block.text)
    run = subprocess.run(
        [fast_python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        env=environment(PYTHONPATH=str(ROOT), OURVIDZ_STATE_DIR=str(tmp_path / "state")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    promised = sum(block.text.count("def test_") for block in blocks)
    assert promised >= 2
    assert re.search(rf"^{promised} passed", run.stdout, re.MULTILINE), run.stdout + run.stderr


def test_the_settings_files_of_the_pages_are_accepted(page: OpenPage) -> None:
    """Operators copy these files, and an invalid value would stop every process."""
    files = [block.text for name in PAGES for block in page(name).blocks("text") if block.title == ".env"]
    assert len(files) >= 2
    for text in files:
        variables = dict(line.split("=", 1) for line in text.splitlines())
        known = {str(field.validation_alias) for field in Settings.model_fields.values()}
        assert variables.keys() <= known
        load_settings(_env_file=None, **variables)


@pytest.mark.system
def test_the_demo_generates_its_images(tmp_path: Path) -> None:
    """Runs `ourvidz demo --json`, as `scripts/demo` does after it has created its environment."""
    run = subprocess.run(
        [sys.executable, "-m", "ourvidz.cli.main", "demo", "--json"],
        env=environment(PYTHONPATH=str(ROOT)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    files = {path.name: path for path in (tmp_path / "ourvidz-demo").iterdir()}
    assert set(files) == {Path(file).name for file in (*report["files"], report["grid"])}
    assert len(files) == 2 * len(report["pictures"]) + 1
    assert report["callbacks"] == ["processing", "completed"]
    grid = Image.open(files["grid.png"])
    assert grid.width * grid.height > len(report["pictures"]) * 256 * 256
    committed = Image.open(ROOT / "docs/images/demo-grid.png")
    assert committed.size == grid.size, "the image on the front page shows another demo"


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_marked_as_bash(page: OpenPage, name: str) -> None:
    """Blocks in another language, or without one, are not executed."""
    known = {"bash", "json", "python", "text", "mermaid"}
    assert {block.language for block in page(name).blocks()} - known <= (
        {""} if name in PAGES_WITH_TEXT_DIAGRAMS else set()
    )


def test_every_entry_of_the_table_of_other_tests_exists(page: OpenPage) -> None:
    """`ELSEWHERE` has existing tests and scripts, and only commands that a page contains."""
    documented = {line for name in PAGES for b in page(name).blocks("bash") for line in b.text.splitlines()}
    assert set(ELSEWHERE) <= documented
    for command, runner in ELSEWHERE.items():
        if "::" in runner:
            path, _, test = runner.partition("::")
            assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), runner
        if command.startswith("scripts/"):
            assert (ROOT / command).stat().st_mode & stat.S_IXUSR, command
