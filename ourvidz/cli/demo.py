"""`ourvidz demo`: starts a stack, makes some images, and checks assets, thumbnails and callbacks."""

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
from ourvidz.cli.stack import PYTHON_M, with_package_path
from ourvidz.settings import environment
from ourvidz.subprocesses import dying_with_parent

if TYPE_CHECKING:
    from ourvidz.cli.shim import Shim

READY_TIMEOUT_S = 180.0
JOB_TIMEOUT_S = 120.0
CALLBACKS_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.1
MAX_THUMBNAIL_PX = 256
EXPECTED_CALLBACKS = ["processing", "completed"]
OUTPUT_DIR = Path("ourvidz-demo")
CONTACT_SHEET = "grid.png"
SQUARE = (128, 128)
WIDE = (128, 96)
"""Not square, so that exchanged width and height are found."""


@dataclass(frozen=True, slots=True)
class DemoImage:
    """One image of the demo; `size` is width and height in pixels."""

    prompt: str
    seed: int
    size: tuple[int, int] = SQUARE

    def payload(self, job_id: str) -> dict[str, Any]:
        """The payload of the job that makes it."""
        width, height = self.size
        return {
            "id": job_id,
            "type": "sdxl_image_fast",
            "prompt": self.prompt,
            "user_id": "demo",
            "config": {"width": width, "height": height, "num_images": 1, "seed": self.seed},
        }


IMAGES = (
    DemoImage("a big red circle on a blue background", 7),
    DemoImage("a small yellow star on a green background, at the top", 8),
    DemoImage("a big purple square on a white background, on the left", 9),
    DemoImage("a small white cross on a black background, on the right", 10),
    DemoImage("a big orange triangle on a cyan background, at the bottom", 11),
    DemoImage("a big green diamond on a pink background, in the centre", 12, WIDE),
)


class DemoFailed(click.ClickException):
    """A check of the demo failed."""


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
    started_at = time.monotonic()
    with _state_directory(state_dir) as folder, _stack(folder, flower=keep) as (ready, process):
        # Imported here: requests and Pillow load while the stack starts.
        from ourvidz.cli.shim import Shim

        shim = Shim(ready["shim"], ready["api_key"])
        result = make_images(shim, started_at)
        if as_json:
            print_json(result)
        else:
            _print_result(result)
        if keep:
            _wait_for_interrupt(ready, process, as_json)


def make_images(shim: Shim, started_at: float) -> dict[str, Any]:
    """Run all jobs, check their assets and callbacks, and save the files. Raises `DemoFailed`.

    `started_at` is a time of the monotonic clock. Returns the JSON result; its `seconds` end with the first
    image, its `total_seconds` with the last callback.
    """
    jobs = {f"demo-{uuid.uuid4()}": image for image in IMAGES}
    for job_id, image in jobs.items():
        shim.post("/jobs", image.payload(job_id))
    results: list[dict[str, Any]] = []
    seconds = None
    with spinner("making the first picture") as update:
        for job_id, image in jobs.items():
            asset = _wait_for_job(shim, job_id)["result"]["assets"][0]
            seconds = seconds or round(time.monotonic() - started_at, 2)
            results.append(_download(shim, job_id, image, asset))
            update(f"{len(results)} of {len(jobs)} pictures")
    sheet = _save_contact_sheet([(Path(result["file"]), result["prompt"]) for result in results])
    with spinner("waiting for the callbacks"):
        callbacks = [_wait_for_callbacks(shim, job_id) for job_id in jobs]
    return {
        "job_id": results[0]["job_id"],
        "status": "completed",
        "assets": [result["url"] for result in results],
        "thumbnails": [result["thumbnail_url"] for result in results],
        "callbacks": callbacks[0],
        "seconds": seconds,
        "total_seconds": round(time.monotonic() - started_at, 2),
        "files": [file for result in results for file in (result["file"], result["thumbnail"])],
        "grid": str(sheet),
        "pictures": results,
    }


def _download(shim: Shim, job_id: str, image: DemoImage, asset: Mapping[str, Any]) -> dict[str, Any]:
    """Download, check and save an image and its thumbnail; returns URLs and file names."""
    data, thumbnail = (_fetch_asset(shim, asset[name]) for name in ("url", "thumbnail_url"))
    size = _size_px(data)
    _require(size == image.size, f"the picture is {size} pixels instead of {image.size}")
    _require(max(_size_px(thumbnail)) <= MAX_THUMBNAIL_PX, f"the thumbnail is {_size_px(thumbnail)} pixels")
    files = _save(job_id, image=data, thumbnail=thumbnail)
    return {
        "job_id": job_id,
        "prompt": image.prompt,
        "url": asset["url"],
        "thumbnail_url": asset["thumbnail_url"],
        "file": str(files[0]),
        "thumbnail": str(files[1]),
    }


def _wait_for_job(shim: Shim, job_id: str) -> dict[str, Any]:
    """Follow a job's events to its end; returns the job. Raises `DemoFailed` unless it completed in time."""
    deadline = time.monotonic() + JOB_TIMEOUT_S
    for _ in shim.events(job_id):
        _require(time.monotonic() < deadline, f"the job took longer than {JOB_TIMEOUT_S:g} s")
    job = shim.job(job_id)
    error = job.get("error") or {}
    _require(
        job["status"] == "completed", f"the job {job['status']}: {error.get('code')} {error.get('message')}"
    )
    return job


def _fetch_asset(shim: Shim, key: str) -> bytes:
    return shim.fetch(key if "://" in key else f"/assets/{key}")


def _size_px(image: bytes) -> tuple[int, int]:
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(image)).size


def _wait_for_callbacks(shim: Shim, job_id: str) -> list[str]:
    """Wait for the terminal callback in the shim's inbox; returns the statuses of all, in their order.

    Raises `DemoFailed` for other statuses than expected, and for an invalid signature.
    """
    deadline = time.monotonic() + CALLBACKS_TIMEOUT_S
    while True:
        items = shim.get("/inbox", job_id=job_id)["items"]
        statuses = [item["payload"]["status"] for item in items]
        if EXPECTED_CALLBACKS[-1] in statuses or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    _require(statuses == EXPECTED_CALLBACKS, f"the callbacks were {statuses} instead of {EXPECTED_CALLBACKS}")
    _require(all(item["verified"] for item in items), "a callback's signature was not right")
    return statuses


def _save(job_id: str, *, image: bytes, thumbnail: bytes) -> list[Path]:
    """Write the files of a job to the output directory and return their paths."""
    OUTPUT_DIR.mkdir(exist_ok=True)
    files = [OUTPUT_DIR.absolute() / f"{job_id}.{extension}" for extension in ("png", "thumb.webp")]
    for file, data in zip(files, (image, thumbnail), strict=True):
        file.write_bytes(data)
    return files


def _save_contact_sheet(images: list[tuple[Path, str]]) -> Path:
    """`images` are pairs of file and caption."""
    from ourvidz.cli.contact_sheet import contact_sheet

    sheet = OUTPUT_DIR.absolute() / CONTACT_SHEET
    contact_sheet([file.read_bytes() for file, _ in images], [caption for _, caption in images]).save(sheet)
    return sheet


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DemoFailed(message)


@contextlib.contextmanager
def _state_directory(folder: Path | None) -> Iterator[Path]:
    """The given directory, else a temporary one, which is deleted unless the demo fails."""
    if folder is not None:
        yield folder.absolute()
        return
    temporary = Path(tempfile.mkdtemp(prefix="ourvidz-demo-"))
    try:
        yield temporary
    except BaseException:
        print_note(f"logs of the processes: {temporary / 'logs'}")
        raise
    shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _stack(folder: Path, *, flower: bool) -> Iterator[tuple[dict[str, Any], subprocess.Popen[bytes]]]:
    """Run `ourvidz up` as a child: yields its ready line and its process, stops it afterwards."""
    argv = [*PYTHON_M, "ourvidz.cli.main", "up", "--state-dir", str(folder)]
    print_note(f"starting everything in {folder}")
    # In its own process group: on Ctrl-C this process stops it, and waits.
    process = subprocess.Popen(
        argv if flower else [*argv, "--no-flower", "--workers", "sdxl"],
        stdout=subprocess.PIPE,
        env=with_package_path(environment()),
        process_group=0,
        preexec_fn=dying_with_parent(signal.SIGTERM),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield _read_ready_line(process), process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _read_ready_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Read the JSON line that `ourvidz up` prints when it is ready. Raises `DemoFailed` after a timeout."""
    assert process.stdout is not None
    timeout = threading.Timer(READY_TIMEOUT_S, process.terminate)
    timeout.start()
    try:
        line = process.stdout.readline()
    finally:
        timeout.cancel()
    if not line:
        raise DemoFailed("the stack did not become ready")
    ready: dict[str, Any] = json.loads(line)
    return ready


def _print_result(result: dict[str, Any]) -> None:
    for picture in result["pictures"]:
        click.echo(f"{picture['file']}  {picture['prompt']}")
    click.echo(
        f"The first picture after {result['seconds']} s, everything after {result['total_seconds']} s; "
        f"the callbacks of each: {' and '.join(result['callbacks'])}."
    )
    click.echo(f"All of them in one: {result['grid']}")


def _wait_for_interrupt(ready: dict[str, Any], process: subprocess.Popen[bytes], as_json: bool) -> None:
    """Print the URLs of the running stack, and wait for Ctrl-C or its end."""
    output: Callable[[str], None] = print_note if as_json else click.echo
    for name in ("shim", "inbox", "flower", "flower_login"):
        output(f"{name}: {ready[name]}")
    output("Ctrl-C stops everything.")
    with contextlib.suppress(KeyboardInterrupt):
        process.wait()
