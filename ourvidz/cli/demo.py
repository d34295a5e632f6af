"""`ourvidz demo`: a whole stack, some pictures, and a look at everything that should have happened."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ourvidz.cli.console import print_json, print_note, spinner
from ourvidz.cli.stack import PYTHON_M, findable
from ourvidz.settings import environment
from ourvidz.subprocesses import dying_with_parent

if TYPE_CHECKING:
    from ourvidz.cli.shim import Shim

READY_S = 180.0
JOB_S = 120.0
CALLBACKS_S = 15.0
STOP_S = 30.0
POLL_S = 0.1
THUMBNAIL_PX = 256
EXPECTED = ["processing", "completed"]
PICTURES = Path("ourvidz-demo")
GRID = "grid.png"
SQUARE = (128, 128)
WIDE = (128, 96)
"""Not square: a picture with its sides exchanged would be noticed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One picture of the demo; `size` is width and height in pixels."""

    prompt: str
    seed: int
    size: tuple[int, int] = SQUARE

    def payload(self, job_id: str) -> dict[str, Any]:
        """The job that makes it."""
        width, height = self.size
        return {
            "id": job_id,
            "type": "sdxl_image_fast",
            "prompt": self.prompt,
            "user_id": "demo",
            "config": {"width": width, "height": height, "num_images": 1, "seed": self.seed},
        }


WANTED = (
    Wanted("a big red circle on a blue background", 7),
    Wanted("a small yellow star on a green background, at the top", 8),
    Wanted("a big purple square on a white background, on the left", 9),
    Wanted("a small white cross on a black background, on the right", 10),
    Wanted("a big orange triangle on a cyan background, at the bottom", 11),
    Wanted("a big green diamond on a pink background, in the centre", 12, WIDE),
)


class DemoFailed(click.ClickException):
    """Something that the demo promises did not happen."""


@click.command(short_help="Start everything, make some pictures, show them.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON and nothing else.")
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where everything is kept; a temporary directory by default.",
)
def demo(as_json: bool, keep: bool, state_dir: Path | None) -> None:
    """Start everything, make some pictures, show them in one. Exit status 0 only if all of it worked."""
    began = time.monotonic()
    with _directory(state_dir) as folder, _stack(folder, flower=keep) as (ready, process):
        # Only now: requests and Pillow load while the stack starts.
        from ourvidz.cli.shim import Shim

        shim = Shim(ready["shim"], ready["api_key"])
        told = make_pictures(shim, began)
        if as_json:
            print_json(told)
        else:
            _show(told)
        if keep:
            _keep(ready, process, as_json)


def make_pictures(shim: Shim, began: float) -> dict[str, Any]:
    """Run all jobs and check everything about them; `DemoFailed` says what was not as it should be.
    `seconds` counts from `began` (monotonic) to the first picture, `total_seconds` to the end."""
    jobs = {f"demo-{uuid.uuid4()}": wanted for wanted in WANTED}
    for job_id, wanted in jobs.items():
        shim.post("/jobs", wanted.payload(job_id))
    pictures: list[dict[str, Any]] = []
    seconds = None
    with spinner("making the first picture") as show:
        for job_id, wanted in jobs.items():
            asset = _finished(shim, job_id)["result"]["assets"][0]
            seconds = seconds or round(time.monotonic() - began, 2)
            pictures.append(_fetched(shim, job_id, wanted, asset))
            show(f"{len(pictures)} of {len(jobs)} pictures")
    grid = _keep_grid([(Path(picture["file"]), picture["prompt"]) for picture in pictures])
    with spinner("waiting for the callbacks"):
        callbacks = [_callbacks(shim, job_id) for job_id in jobs]
    return {
        "job_id": pictures[0]["job_id"],
        "status": "completed",
        "assets": [picture["url"] for picture in pictures],
        "thumbnails": [picture["thumbnail_url"] for picture in pictures],
        "callbacks": callbacks[0],
        "seconds": seconds,
        "total_seconds": round(time.monotonic() - began, 2),
        "files": [file for picture in pictures for file in (picture["file"], picture["thumbnail"])],
        "grid": str(grid),
        "pictures": pictures,
    }


def _fetched(shim: Shim, job_id: str, wanted: Wanted, asset: Mapping[str, Any]) -> dict[str, Any]:
    """Fetch, check and keep one picture and its thumbnail."""
    picture, thumbnail = (_image(shim, asset[name]) for name in ("url", "thumbnail_url"))
    found = _size(picture)
    _expect(found == wanted.size, f"the picture is {found} pixels instead of {wanted.size}")
    _expect(max(_size(thumbnail)) <= THUMBNAIL_PX, f"the thumbnail is {_size(thumbnail)} pixels")
    files = _keep_files(job_id, picture=picture, thumbnail=thumbnail)
    return {
        "job_id": job_id,
        "prompt": wanted.prompt,
        "url": asset["url"],
        "thumbnail_url": asset["thumbnail_url"],
        "file": str(files[0]),
        "thumbnail": str(files[1]),
    }


def _finished(shim: Shim, job_id: str) -> dict[str, Any]:
    ends = time.monotonic() + JOB_S
    for _ in shim.events(job_id):
        _expect(time.monotonic() < ends, f"the job took longer than {JOB_S:g} s")
    job = shim.job(job_id)
    error = job.get("error") or {}
    _expect(
        job["status"] == "completed", f"the job {job['status']}: {error.get('code')} {error.get('message')}"
    )
    return job


def _image(shim: Shim, key: str) -> bytes:
    return shim.fetch(key if "://" in key else f"/assets/{key}")


def _size(image: bytes) -> tuple[int, int]:
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(image)).size


def _callbacks(shim: Shim, job_id: str) -> list[str]:
    """The statuses that the inbox has got for a job, in order; every signature must have been right."""
    ends = time.monotonic() + CALLBACKS_S
    while True:
        items = shim.get("/inbox", job_id=job_id)["items"]
        statuses = [item["payload"]["status"] for item in items]
        if EXPECTED[-1] in statuses or time.monotonic() > ends:
            break
        time.sleep(POLL_S)
    _expect(statuses == EXPECTED, f"the callbacks were {statuses} instead of {EXPECTED}")
    _expect(all(item["verified"] for item in items), "a callback's signature was not right")
    return statuses


def _keep_files(job_id: str, *, picture: bytes, thumbnail: bytes) -> list[Path]:
    PICTURES.mkdir(exist_ok=True)
    files = [PICTURES.absolute() / f"{job_id}.{ending}" for ending in ("png", "thumb.webp")]
    for file, content in zip(files, (picture, thumbnail), strict=True):
        file.write_bytes(content)
    return files


def _keep_grid(pictures: list[tuple[Path, str]]) -> Path:
    from ourvidz.cli.contact_sheet import contact_sheet

    grid = PICTURES.absolute() / GRID
    contact_sheet([file.read_bytes() for file, _ in pictures], [text for _, text in pictures]).save(grid)
    return grid


def _expect(fine: bool, otherwise: str) -> None:
    if not fine:
        raise DemoFailed(otherwise)


@contextlib.contextmanager
def _directory(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        yield chosen.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix="ourvidz-demo-"))
    try:
        yield folder
    except BaseException:
        print_note(f"logs of the processes: {folder / 'logs'}")
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _stack(folder: Path, *, flower: bool) -> Iterator[tuple[dict[str, Any], subprocess.Popen[bytes]]]:
    """`ourvidz up` as a child, ready; stopped in the end."""
    argv = [*PYTHON_M, "ourvidz.cli.main", "up", "--state-dir", str(folder)]
    print_note(f"starting everything in {folder}")
    # Its own group: on Ctrl-C this process stops it, and waits.
    process = subprocess.Popen(
        argv if flower else [*argv, "--no-flower", "--workers", "sdxl"],
        stdout=subprocess.PIPE,
        env=findable(environment()),
        process_group=0,
        preexec_fn=dying_with_parent(signal.SIGTERM),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield _ready(process), process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    too_long = threading.Timer(READY_S, process.terminate)
    too_long.start()
    try:
        line = process.stdout.readline()
    finally:
        too_long.cancel()
    if not line:
        raise DemoFailed("the stack did not become ready")
    ready: dict[str, Any] = json.loads(line)
    return ready


def _show(told: dict[str, Any]) -> None:
    for picture in told["pictures"]:
        click.echo(f"{picture['file']}  {picture['prompt']}")
    click.echo(
        f"The first picture after {told['seconds']} s, everything after {told['total_seconds']} s; "
        f"the callbacks of each: {' and '.join(told['callbacks'])}."
    )
    click.echo(f"All of them in one: {told['grid']}")


def _keep(ready: dict[str, Any], process: subprocess.Popen[bytes], as_json: bool) -> None:
    show: Callable[[str], None] = print_note if as_json else click.echo
    for name in ("shim", "inbox", "flower"):
        show(f"{name}: {ready[name]}")
    show("Ctrl-C stops everything.")
    with contextlib.suppress(KeyboardInterrupt):
        process.wait()
