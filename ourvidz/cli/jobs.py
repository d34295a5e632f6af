"""`ourvidz jobs`: submits, lists, follows and changes jobs over HTTP."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

import click

from ourvidz.cli.console import TableRow, print_json, print_note, print_table
from ourvidz.jobs.catalog import ALIASES, CATALOG

if TYPE_CHECKING:
    from ourvidz.cli.shim import Event, Shim

TYPES = click.Choice([*CATALOG, *ALIASES])
Command = Callable[..., None]


def shim_options(command: Command) -> Command:
    """Decorator: add the options of every command, `--url`, `--api-key` and `--json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--api-key", "key", help="The shim's key; default $OURVIDZ_API_KEY."),
        click.option("--url", help="The shim; default $OURVIDZ_URL, else the running `ourvidz up`."),
    ):
        command = option(command)
    return command


def connect(url: str | None, key: str | None) -> Shim:
    """The shim that a command talks to."""
    # Imported here: `--help` does not need requests, which takes as long to import as all other modules.
    from ourvidz.cli import shim

    return shim.connect(url, key)


@click.group(short_help="Submit, watch and manage jobs over HTTP.")
def jobs() -> None:
    """Submit, watch and manage jobs over HTTP."""


@jobs.command()
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--prompt", help="What the picture shows; instead of FILE.")
@click.option("--type", "type_name", default="sdxl_image_fast", metavar="TYPE", type=TYPES, show_default=True)
@click.option("--steps", type=int)
@click.option("--size", metavar="WxH", help="In pixels, for example 1024x1024.")
@click.option("--num-images", type=int)
@click.option("--seed", type=int)
@click.option("--reference", type=click.File("rb"), help="An image file that the result follows.")
@click.option("--start-reference", type=click.File("rb"), help="The first frame of a clip, an image file.")
@click.option("--end-reference", type=click.File("rb"), help="The last frame of a clip, an image file.")
@click.option("--user", default="cli", show_default=True, help="Whose job it is.")
@click.option("--id", "job_id", help="The job's id; a new one by default.")
@click.option("--watch", "follow", is_flag=True, help="Wait for its end, as `jobs watch` does.")
@shim_options
def submit(file: IO[bytes] | None, prompt: str | None, type_name: str, steps: int | None, size: str | None,
           num_images: int | None, seed: int | None, reference: IO[bytes] | None,
           start_reference: IO[bytes] | None, end_reference: IO[bytes] | None, user: str,
           job_id: str | None, follow: bool, url: str | None, key: str | None,
           as_json: bool) -> None:  # fmt: skip
    """Submit a job: a payload from FILE (`-` for standard input), or one made of the options.

    The files of references are uploaded first, for the user of the job.
    """
    if (file is None) == (prompt is None):
        raise click.UsageError("give a FILE or a --prompt")
    if file is not None:
        payload = _read_json(file)
    else:
        config = {"steps": steps, "num_images": num_images, "seed": seed, **_parse_size(size)}
        payload = {
            "id": job_id or str(uuid.uuid4()),
            "type": type_name,
            "prompt": prompt,
            "user_id": user,
            "config": {name: value for name, value in config.items() if value is not None},
        }
    shim = connect(url, key)
    files = {"image": reference, "first_frame": start_reference, "last_frame": end_reference}
    _upload_references(shim, payload, {name: opened for name, opened in files.items() if opened})
    response = shim.post("/jobs", payload)
    if follow:
        _watch(shim, response["job_id"], as_json)
    elif as_json:
        print_json(response)
    else:
        print_note(f"{response['status']} in {response.get('queue')}, {response.get('position')} before it")
        click.echo(response["job_id"])


def _upload_references(shim: Shim, payload: Any, files: dict[str, IO[bytes]]) -> None:
    """Upload files for the user of a payload, and add their storage paths to its `config`."""
    if not files:
        return
    fields = payload if isinstance(payload, dict) else {}
    containers = [fields, fields.get("metadata"), fields.get("config")]
    user_id = next(
        (one["user_id"] for one in containers if isinstance(one, dict) and one.get("user_id")), None
    )
    config = fields.setdefault("config", {})
    if not user_id or not isinstance(config, dict):
        raise click.UsageError("a payload with references needs a user_id, and a config that is an object")
    for name, file in files.items():
        config[name] = shim.upload_reference(file.read(), user_id=str(user_id))


@jobs.command()
@click.argument("job_id")
@shim_options
def show(job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Show the status, the assets and the error of a job."""
    _print_job(connect(url, key).job(job_id), as_json)


@jobs.command("list")
@click.option("--user")
@click.option("--type", "type_name")
@click.option("--status", type=click.Choice(["queued", "processing", "completed", "failed", "cancelled"]))
@click.option("--cursor", help="Go on where a page ended.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@shim_options
def list_(user: str | None, type_name: str | None, status: str | None, cursor: str | None, limit: int,
          url: str | None, key: str | None, as_json: bool) -> None:  # fmt: skip
    """List jobs, newest first."""
    query = {"user_id": user, "type": type_name, "status": status, "cursor": cursor, "limit": limit}
    page = connect(url, key).get("/jobs", **query)
    if as_json:
        print_json(page)
        return
    table = [
        TableRow(
            (job["job_id"], job["type"], _status(job)),
            (f"error: {job['error'].get('code')}",) if job.get("error") else (),
        )
        for job in page["items"]
    ]
    if table:
        print_table(("job", "type", "status"), table)
    else:
        click.echo("No jobs.")
    if page.get("cursor"):
        print_note(f"more with --cursor {page['cursor']}")


@jobs.command()
@click.argument("job_id")
@shim_options
def cancel(job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Cancel a job: a queued one never runs, a running one stops before its next step."""
    _print_change(connect(url, key).post(_path(job_id, "cancel")), "cancelled", job_id, as_json)


@jobs.command()
@click.argument("job_id")
@shim_options
def retry(job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Run a failed or cancelled job again."""
    _print_change(connect(url, key).post(_path(job_id, "retry")), "queued again", job_id, as_json)


@jobs.command()
@click.argument("job_id")
@shim_options
def delete(job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Delete a finished job and its assets."""
    response = connect(url, key).delete(_path(job_id))
    _print_change(response or {"job_id": job_id, "deleted": True}, "deleted", job_id, as_json)


@jobs.command()
@click.argument("job_id")
@shim_options
def watch(job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Follow a job to its end. Exit status 0 when it completed, else 1."""
    _watch(connect(url, key), job_id, as_json)


def _watch(shim: Shim, job_id: str, as_json: bool) -> None:
    """Print the events of a job until it ends, then the job. A streamed text is printed only once."""
    from rich.console import Console
    from rich.progress import Progress

    shim.job(job_id)
    printed = ""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(job_id, total=100.0)
        for event in shim.events(job_id):
            bar.update(line, completed=progress_of(event), description=description_of(event))
            if as_json and event.kind != "preview":
                print_json({"event": event.kind, **event.data})
            elif not as_json and (event.kind == "token" or printed):
                bar.stop()
                printed = _print_text(event, printed)
    _print_job(shim.job(job_id), as_json, printed)


def _print_text(event: Event, printed: str) -> str:
    """Print the text of a token event; returns all text that was printed so far, empty after the start of
    another attempt."""
    if event.kind == "token":
        click.echo(event.data["text"], nl=False)
        return printed + str(event.data["text"])
    if event.kind in ("state", "done"):
        click.echo()
    return "" if event.kind == "state" else printed


def progress_of(event: Event) -> float | None:
    """The progress (0 to 100) that an event reports; None when it reports none."""
    if event.kind == "done" and event.data.get("status") == "completed":
        return 100.0
    progress = event.data.get("progress")
    return float(progress) if isinstance(progress, int | float) else None


def description_of(event: Event) -> str | None:
    """The stage or status that an event reports; None when it reports neither."""
    description = event.data.get("stage") or event.data.get("status")
    return str(description) if description else None


def _print_job(job: dict[str, Any], as_json: bool, printed: str = "") -> None:
    """Print a job, without a text that was `printed` before. Exit status 1 if it failed or was cancelled."""
    if as_json:
        print_json(job)
    else:
        click.echo(f"{job['job_id']}  {job['status']}  {job.get('progress', 0):.0f} %")
        for asset in (job.get("result") or {}).get("assets", ()):
            text = asset if isinstance(asset, str) else _format_asset(asset)
            if text != printed:
                click.echo(text)
        if job.get("error"):
            print_note(f"{job['error'].get('code')}: {job['error'].get('message')}")
    if job["status"] in ("failed", "cancelled"):
        raise click.exceptions.Exit(1)


def _status(job: dict[str, Any]) -> str:
    """The status of a job for a list; with the progress while it runs."""
    running = job["status"] == "processing"
    return f"processing {job['progress']:.0f} %" if running else str(job["status"])


def _format_asset(asset: dict[str, Any]) -> str:
    """The text of a text asset, the document of a JSON asset, else the asset's URL or type."""
    metadata = asset.get("metadata") or {}
    if asset["type"] == "text":
        return str(metadata["text"])
    if asset["type"] == "json":
        return json.dumps(metadata["result"], indent=2)
    return str(asset.get("url") or asset["type"])


def _print_change(response: Any, change: str, job_id: str, as_json: bool) -> None:
    """Print that a job was changed, or the shim's response as JSON."""
    if as_json:
        print_json(response)
    else:
        click.echo(f"{job_id}  {change}")


def _path(job_id: str, *more: str) -> str:
    """The path of a job's route, with further segments."""
    return "/".join(("/jobs", quote(job_id, safe=""), *more))


def _read_json(file: IO[bytes]) -> Any:
    try:
        return json.loads(file.read())
    except ValueError as error:
        raise click.UsageError(f"{file.name} holds no JSON: {error}") from None


def _parse_size(text: str | None) -> dict[str, int]:
    """`width` and `height` in pixels, from WIDTHxHEIGHT; empty without a text."""
    if text is None:
        return {}
    width, separator, height = text.lower().partition("x")
    if not (separator and width.isdigit() and height.isdigit()):
        raise click.UsageError("--size is WIDTHxHEIGHT, for example 1024x1024")
    return {"width": int(width), "height": int(height)}
