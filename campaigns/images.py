"""The install steps of the images without a container runtime, and their processes on a read-only root.

    python -m campaigns.images [control] [worker] [--folder ./images] [--json]

The `RUN` steps of an image's build stage are executed in a folder, as the Dockerfile has them: packages are
downloaded and compared with the hashes of the lock file, the wheel is built and installed, and `pip check`
finds all requirements. Then the process of the image starts with the variables of the image, on a root file
system that is mounted read-only and has only the writable folders that the Dockerfile names, and its health
check must pass. Needs a package index, and root for the mounts; the packages of a worker take gigabytes.
Exits with 1 if a step fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ourvidz.cli.console import print_note
from ourvidz.embedded_redis import PrivateServer, find_server
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


@dataclass(frozen=True, slots=True)
class Installed:
    """One image: packages, MB on the disk, seconds of the steps, and whether its process is healthy."""

    image: str
    packages: int
    megabytes: int
    seconds: float
    read_only_root: bool
    healthy: bool


def install(image: str, folder: Path) -> Installed:
    """Execute the build stage of an image in `folder`, then start its process.

    Raises `CalledProcessError` if a step fails.
    """
    build, final = stages(dockerfile(image))
    prefix, source = folder / "venv", folder / "source"
    source.mkdir(parents=True)
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", folder / "python"], check=True)
    for instruction in build.instructions:
        if instruction.name == "COPY":
            *names, target = instruction.text.split()
            (source / target).mkdir(exist_ok=True, parents=True)
            for name in names:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, source / target, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / name, source / target)
        elif instruction.name == "RUN":
            run_step(instruction, prefix=prefix, source=source, programs=folder / "python/bin")
    seconds = time.monotonic() - began
    site = next((prefix / "lib").iterdir()) / "site-packages"
    size = sum(path.stat().st_size for path in prefix.rglob("*") if path.is_file() and not path.is_symlink())
    ro = may_mount()
    return Installed(
        image,
        packages=len(list(site.glob("*.dist-info"))),
        megabytes=size // 10**6,
        seconds=round(seconds, 1),
        read_only_root=ro,
        healthy=_is_healthy(final, prefix, folder, ro),
    )


def _is_healthy(stage: Stage, prefix: Path, folder: Path, ro: bool) -> bool:
    """Whether the process of an image starts and passes its health check, with the tiny models on the CPU."""
    folders = make_folders(folder / "writable")
    (folder / "redis").mkdir()
    server = PrivateServer(binary=find_server(None), folder=folder / "redis")
    server.start()
    (command,) = (each.command() for each in stage.all("CMD"))
    env = environment(**image_env(stage, folders, prefix)) | {
        "OURVIDZ_REDIS_URL": server.url,
        "OURVIDZ_HOST": "127.0.0.1",
        "OURVIDZ_PORTS": "0",
    }
    argv = [str(prefix / "bin" / command[0]), *command[1:]]
    if ro:
        argv = read_only(argv, list(folders.values()))
    process = subprocess.Popen(argv, cwd=folders["/var/lib/ourvidz"], env=env, stdout=sys.stderr)
    try:
        check = stage.health_check()
        until = time.monotonic() + HEALTHY_S
        while time.monotonic() < until and process.poll() is None:
            if (
                subprocess.run(
                    [prefix / "bin" / check[0], *check[1:]], env=env, capture_output=True
                ).returncode
                == 0
            ):
                return True
            time.sleep(1)
        return False
    finally:
        process.terminate()
        process.wait()
        server.kill()


def run(images: Sequence[str], folder: Path) -> Iterator[Installed]:
    """Install the images, one after the other."""
    for image in images:
        print_note(f"installing the image {image}")
        yield install(image, folder / image)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", default=list(IMAGES), choices=IMAGES)
    parser.add_argument("--folder", type=Path, help="where to install them; a temporary folder by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ourvidz-images-") as temporary:
        results = list(run(options.images, options.folder or Path(temporary)))
    for result in results:
        print(json.dumps(asdict(result)) if options.json else result)
    return 0 if all(result.healthy for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
