"""The install steps of the images without a container runtime, and their processes on a read-only root.

    python -m campaigns.images [control] [worker] [--folder ./images] [--python /usr/bin/python3] [--json]

The `RUN` steps of an image's build stage are executed in a folder, as the Dockerfile has them: packages are
downloaded and compared with the hashes of the lock file, the wheel is built and installed, and `pip check`
finds all requirements. Then the processes of the images start with the variables of the image, on a root file
system that is mounted read-only and has only the writable folders that the Dockerfile names. Their health
checks must pass, and a job that the one image accepts must be completed by the other.

Prints for each image the number of packages, MB and seconds. Needs a package index, and root for the mounts;
the packages of a worker take gigabytes. Exits with 1 if something fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ourvidz.cli.console import print_note
from ourvidz.embedded_redis import PrivateServer, find_server, free_port
from ourvidz.settings import environment

ROOT = Path(__file__).parents[1]
IMAGES = ("control", "worker")
INSTALLED = "/opt/ourvidz"
"""Where the images have the virtual environment."""
WRITABLE = ("/run/ourvidz", "/tmp", "/var/lib/ourvidz", "/srv/assets")
"""The folders of an image that its process may write to."""
HEALTHY_S = 120.0


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile: `RUN`, and what follows it, on one line."""

    name: str
    text: str

    def command(self) -> list[str]:
        """The program and arguments of a `CMD` or `ENTRYPOINT` in JSON."""
        parsed: list[str] = json.loads(self.text)
        return parsed


@dataclass(slots=True)
class Stage:
    """One stage of a Dockerfile."""

    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """The instructions of this name, in order."""
        return [each for each in self.instructions if each.name == name]

    def env(self) -> dict[str, str]:
        """The variables that the stage sets."""
        pairs = [pair for each in self.all("ENV") for pair in shlex.split(each.text)]
        return dict(pair.split("=", 1) for pair in pairs)

    def health_check(self) -> list[str]:
        """The command of the health check."""
        (check,) = self.all("HEALTHCHECK")
        return Instruction("CMD", check.text.partition(" CMD ")[2]).command()


def dockerfile(image: str) -> Path:
    """The Dockerfile of an image."""
    return ROOT / "deploy/images" / image / "Dockerfile"


def stages(path: Path) -> list[Stage]:
    """Parse a Dockerfile."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    found: list[Stage] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, text = line.strip().partition(" ")
            if name == "FROM":
                found.append(Stage(text))
            else:
                found[-1].instructions.append(Instruction(name, re.sub(r"\s+", " ", text.strip())))
    return found


def run_step(step: Instruction, *, prefix: Path, source: Path, programs: Path) -> None:
    """Execute a `RUN` in `source`: `prefix` replaces `/opt/ourvidz`, `programs` are first on the PATH."""
    command = step.text.replace(INSTALLED, str(prefix))
    env = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-euc", command], cwd=source, env=env, check=True, stdout=sys.stderr)


def image_env(stage: Stage, folders: Mapping[str, Path], prefix: Path) -> dict[str, str]:
    """The variables of an image's process, with `folders` in place of those of the image."""
    replaced = {INSTALLED: str(prefix), "$PATH": "/usr/local/bin:/usr/bin:/bin"} | {
        path: str(folder) for path, folder in folders.items()
    }
    pattern = re.compile("|".join(map(re.escape, replaced)))
    variables = {
        name: pattern.sub(lambda match: replaced[match[0]], value) for name, value in stage.env().items()
    }
    return variables | {"TMPDIR": replaced["/tmp"]}


def make_folders(folder: Path) -> dict[str, Path]:
    """A folder below `folder` for each writable one of an image."""
    made = {path: folder / path.strip("/").replace("/", "-") for path in WRITABLE}
    for path in made.values():
        path.mkdir(parents=True, exist_ok=True)
    return made


def may_mount() -> bool:
    """Whether this process may make a mount namespace with a read-only root."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    return subprocess.run(read_only(["true"], []), capture_output=True).returncode == 0


def read_only(command: Sequence[str], writable: Sequence[Path]) -> list[str]:
    """A command line that runs `command` on a read-only root, in which only these folders can be written."""
    binds = [f"mount --bind {path} {path}" for path in map(shlex.quote, map(str, writable))]
    script = " && ".join([*binds, "mount -o remount,bind,ro /", 'exec "$@"'])
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *command]


def as_user(user: str, command: Sequence[str]) -> list[str]:
    """A command line that runs `command` as `UID:GID`, without capabilities and without a way to get them."""
    uid, _, gid = user.partition(":")
    identity = (f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
    return ["setpriv", *identity, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", *command]


@dataclass(frozen=True, slots=True)
class Image:
    """An image whose build stage was executed: `prefix` is its virtual environment."""

    name: str
    prefix: Path
    final: Stage
    packages: int
    megabytes: int
    seconds: float

    @property
    def user(self) -> str | None:
        """The user of the image, if this process may become it and that user can read what is installed."""
        (user,) = (each.text for each in self.final.all("USER"))
        if os.geteuid() != 0 or shutil.which("setpriv") is None:
            return None
        probe = as_user(user, [str(self.prefix / "bin/python"), "-c", "import ourvidz"])
        return user if subprocess.run(probe, cwd="/", capture_output=True).returncode == 0 else None


class Container:
    """A process of an image, with its variables and its writable folders below `folder`; as the user of the
    image and on a read-only root, where that is possible here. `variables` are those of the operator."""

    def __init__(self, image: Image, command: Sequence[str], folder: Path, **variables: str) -> None:
        self.image = image
        self.folders = make_folders(folder)
        self.env = environment(**image_env(image.final, self.folders, image.prefix)) | variables
        self.user = image.user
        argv = self._argv(command)
        if self.user is not None:
            for path in self.folders.values():
                os.chown(path, *map(int, self.user.split(":")))
        if may_mount():
            argv = read_only(argv, list(self.folders.values()))
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                argv, cwd=self.folders["/var/lib/ourvidz"], env=self.env, stdout=log, stderr=log
            )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run another program of the image beside the process, as `docker exec` does."""
        return subprocess.run(
            self._argv(command), cwd=self.folders["/tmp"], env=self.env, capture_output=True, text=True
        )

    def _argv(self, command: Sequence[str]) -> list[str]:
        argv = [str(self.image.prefix / "bin" / command[0]), *command[1:]]
        return argv if self.user is None else as_user(self.user, argv)

    def is_healthy(self) -> bool:
        """Whether the health check of the image passes within two minutes."""
        until = time.monotonic() + HEALTHY_S
        while time.monotonic() < until and self.process.poll() is None:
            if self.run(*self.image.final.health_check()).returncode == 0:
                return True
            time.sleep(1)
        return False

    def stop(self) -> bool:
        """Stop the process as a container runtime does; returns whether it ended in order.

        uvicorn ends the shim with the signal by which it was stopped.
        """
        self.process.terminate()
        return self.process.wait() in (0, -signal.SIGTERM)


def install(name: str, folder: Path, python: Path) -> Image:
    """Execute the build stage of an image in `folder`, with `python` as that of the base.

    Raises `CalledProcessError` if a step fails.
    """
    build, final = stages(dockerfile(name))
    prefix, source = folder / "venv", folder / "source"
    source.mkdir(parents=True)
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", folder / "python"], check=True)
    programs = folder / "python/bin"
    (programs / "python").unlink()
    (programs / "python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    (programs / "python").chmod(0o755)
    for instruction in build.instructions:
        if instruction.name == "COPY":
            *names, target = instruction.text.split()
            (source / target).mkdir(exist_ok=True, parents=True)
            for each in names:
                if (ROOT / each).is_dir():
                    shutil.copytree(ROOT / each, source / target, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / each, source / target)
        elif instruction.name == "RUN":
            run_step(instruction, prefix=prefix, source=source, programs=programs)
    seconds = time.monotonic() - began
    site = next((prefix / "lib").iterdir()) / "site-packages"
    size = sum(path.stat().st_size for path in prefix.rglob("*") if path.is_file() and not path.is_symlink())
    packages = len(list(site.glob("*.dist-info")))
    return Image(name, prefix, final, packages, size // 10**6, round(seconds, 1))


def start(images: Mapping[str, Image], folder: Path) -> dict[str, bool]:
    """Start the processes of the images and run one job, with the tiny models on the CPU.

    Returns for each process whether it was healthy and ended in order; under `job`, if both images are
    there, whether the job was completed and its image stored.
    """
    server = PrivateServer(binary=find_server(None), folder=folder)
    server.start()
    port, assets = free_port(), folder / "assets"
    assets.mkdir()
    variables = {
        "OURVIDZ_REDIS_URL": server.url,
        "OURVIDZ_HOST": "127.0.0.1",
        "OURVIDZ_PORTS": str(port),
        "OURVIDZ_URL": f"http://127.0.0.1:{port}",
    }
    names = {"control": ("keeper", "io", "web"), "worker": ("sdxl",)}
    containers = {}
    for image in images.values():
        for name in names[image.name]:
            made = folder / name
            made.mkdir()
            (made / "srv-assets").symlink_to(assets)
            containers[name] = Container(image, ["ourvidz", "worker", name], made, **variables)
    results = {name: container.is_healthy() for name, container in containers.items()}
    if images.keys() == names.keys():
        job = ("--prompt", "a red circle on a blue background", "--id", "images-1", "--user", "campaign")
        done = containers["web"].run("ourvidz", "jobs", "submit", *job, "--watch")
        print_note(done.stdout + done.stderr)
        results["job"] = done.returncode == 0 and any(assets.rglob("campaign/images-1/*.png"))
    for name, container in containers.items():
        results[name] = container.stop() and results[name]
    server.kill()
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", default=list(IMAGES), choices=IMAGES)
    parser.add_argument("--folder", type=Path, help="where to install them; a temporary folder by default")
    help_ = (
        "that of the base; the processes run as the image's user if that user can read it, else as this one"
    )
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help=help_)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ourvidz-images-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        images = {}
        for name in options.images:
            print_note(f"installing the image {name}")
            images[name] = install(name, folder / name, options.python)
        (folder / "processes").mkdir()
        results = start(images, folder / "processes")
        report = {
            "images": {
                name: [image.packages, image.megabytes, image.seconds] for name, image in images.items()
            },
            "read_only_root": may_mount(),
            "users": {name: image.user for name, image in images.items()},
            "passed": results,
        }
    print(json.dumps(report, indent=None if options.json else 2))
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
