"""`ourvidz demo`: a whole stack, one picture, and a look at everything that should have happened."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ourvidz.cli.console import emit, say, waiting
from ourvidz.cli.stack import PYTHON_M, findable
from ourvidz.cli.supervisor import dying_with_parent
from ourvidz.settings import environment

if TYPE_CHECKING:
    from ourvidz.cli.shim import Shim

READY_S = 180.0
JOB_S = 120.0
CALLBACKS_S = 15.0
STOP_S = 30.0
POLL_S = 0.1
SIZE = (128, 96)
"""Not square: a picture with its sides exchanged would be noticed."""
THUMBNAIL_PX = 256
EXPECTED = ["processing", "completed"]
PICTURES = Path("ourvidz-demo")


class DemoFailed(click.ClickException):
    """Something that the demo promises did not happen."""


@click.command(short_help="Start everything, make one picture, show where it went.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON and nothing else.")
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C.")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where everything is kept; a temporary directory by default.",
)
def demo(as_json: bool, keep: bool, state_dir: Path | None) -> None:
    """Start everything, make one picture, show where it went. Exit status 0 only if all of it worked."""
    began = time.monotonic()
    with _directory(state_dir) as folder, _stack(folder, flower=keep) as (ready, process):
        # Only now: requests and Pillow load while the stack starts.
        from ourvidz.cli.shim import Shim

        shim = Shim(ready["shim"], ready["api_key"])
        told = make_picture(shim, began)
        if as_json:
            emit(told)
        else:
            _show(told)
        if keep:
            _keep(ready, process, as_json)


def make_picture(shim: Shim, began: float) -> dict[str, Any]:
    """Run one job and check everything about it; `DemoFailed` says what was not as it should be.
    `seconds` counts from `began` (monotonic) to the picture."""
    job_id = f"demo-{uuid.uuid4()}"
    width, height = SIZE
    shim.post(
        "/jobs",
        {
            "id": job_id,
            "type": "sdxl_image_fast",
            "prompt": "a red circle on a green background, shapes in a wide landscape",
            "user_id": "demo",
            "config": {"width": width, "height": height, "num_images": 1, "seed": 7},
        },
    )
    with waiting("making a picture"):
        job = _finished(shim, job_id)
    seconds = round(time.monotonic() - began, 2)
    assets = job["result"]["assets"]
    picture, thumbnail = (_image(shim, assets[0][name]) for name in ("url", "thumbnail_url"))
    files = _keep_files(job_id, picture=picture, thumbnail=thumbnail)
    _expect(_size(picture) == SIZE, f"the picture is {_size(picture)} pixels instead of {SIZE}")
    _expect(max(_size(thumbnail)) <= THUMBNAIL_PX, f"the thumbnail is {_size(thumbnail)} pixels")
    with waiting("waiting for the callbacks"):
        callbacks = _callbacks(shim, job_id)
    return {
        "job_id": job_id,
        "status": job["status"],
        "assets": [asset["url"] for asset in assets],
        "thumbnails": [asset["thumbnail_url"] for asset in assets],
        "callbacks": callbacks,
        "seconds": seconds,
        "files": [str(file) for file in files],
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
        say(f"logs of the processes: {folder / 'logs'}")
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _stack(folder: Path, *, flower: bool) -> Iterator[tuple[dict[str, Any], subprocess.Popen[bytes]]]:
    """`ourvidz up` as a child, ready; stopped in the end."""
    argv = [*PYTHON_M, "ourvidz.cli.main", "up", "--state-dir", str(folder)]
    say(f"starting everything in {folder}")
    # Its own group: on Ctrl-C this process stops it, and waits.
    process = subprocess.Popen(
        argv if flower else [*argv, "--no-flower"],
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
    click.echo(f"A picture after {told['seconds']} s, and the callbacks {' and '.join(told['callbacks'])}.")
    for file in told["files"]:
        click.echo(file)


def _keep(ready: dict[str, Any], process: subprocess.Popen[bytes], as_json: bool) -> None:
    show: Callable[[str], None] = say if as_json else click.echo
    for name in ("shim", "inbox", "flower"):
        show(f"{name}: {ready[name]}")
    show("Ctrl-C stops everything.")
    with contextlib.suppress(KeyboardInterrupt):
        process.wait()
