"""`ourvidz jobs`: submit, watch and manage jobs of a shim."""

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


def _talking(command: Command) -> Command:
    """The options of every command: which shim, which key, JSON or not."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--api-key", "key", help="The shim's key; default $OURVIDZ_API_KEY."),
        click.option("--url", help="The shim; default $OURVIDZ_URL, else the running `ourvidz up`."),
    ):
        command = option(command)
    return command


def _connect(url: str | None, key: str | None) -> Shim:
    # requests takes as long to import as everything else here; --help does without.
    from ourvidz.cli.shim import connect

    return connect(url, key)


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
@click.option("--user", default="cli", show_default=True, help="Whose job it is.")
@click.option("--id", "job_id", help="The job's id; a new one by default.")
@click.option("--watch", "follow", is_flag=True, help="Wait for its end, as `jobs watch` does.")
@_talking
def submit(file: IO[bytes] | None, prompt: str | None, type_name: str, steps: int | None, size: str | None,
           num_images: int | None, seed: int | None, user: str, job_id: str | None, follow: bool,
           url: str | None, key: str | None, as_json: bool) -> None:  # fmt: skip
    """Submit a job: a payload from FILE (`-` for standard input), or one made of the options."""
    if (file is None) == (prompt is None):
        raise click.UsageError("give a FILE or a --prompt")
    if file is not None:
        payload = _read(file)
    else:
        config = {"steps": steps, "num_images": num_images, "seed": seed, **_size(size)}
        payload = {
            "id": job_id or str(uuid.uuid4()),
            "type": type_name,
            "prompt": prompt,
            "user_id": user,
            "config": {name: value for name, value in config.items() if value is not None},
        }
    shim = _connect(url, key)
    answer = shim.post("/jobs", payload)
    if follow:
        _watch(shim, answer["job_id"], as_json)
    elif as_json:
        print_json(answer)
    else:
        print_note(f"{answer['status']} in {answer.get('queue')}, {answer.get('position')} before it")
        click.echo(answer["job_id"])


@jobs.command()
@click.argument("job_id")
@_talking
def show(job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Show how a job stands."""
    _present(_connect(url, key).job(job_id), as_json)


@jobs.command("list")
@click.option("--user")
@click.option("--type", "type_name")
@click.option("--status", type=click.Choice(["queued", "processing", "completed", "failed", "cancelled"]))
@click.option("--cursor", help="Go on where a page ended.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@_talking
def list_(user: str | None, type_name: str | None, status: str | None, cursor: str | None, limit: int,
          url: str | None, key: str | None, as_json: bool) -> None:  # fmt: skip
    """List jobs, newest first."""
    query = {"user_id": user, "type": type_name, "status": status, "cursor": cursor, "limit": limit}
    page = _connect(url, key).get("/jobs", **query)
    if as_json:
        print_json(page)
        return
    table = [
        TableRow(
            (job["job_id"], job["type"], job["status"], f"{job['progress']:.0f} %"),
            (f"error: {job['error'].get('code')}",) if job.get("error") else (),
        )
        for job in page["items"]
    ]
    if table:
        print_table(("job", "type", "status", "progress"), table)
    else:
        click.echo("No jobs.")
    if page.get("cursor"):
        print_note(f"more with --cursor {page['cursor']}")


@jobs.command()
@click.argument("job_id")
@_talking
def cancel(job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Cancel a job: a queued one never runs, a running one stops before its next step."""
    _act(_connect(url, key).post(_path(job_id, "cancel")), "cancelled", job_id, as_json)


@jobs.command()
@click.argument("job_id")
@_talking
def retry(job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Run a failed or cancelled job again."""
    _act(_connect(url, key).post(_path(job_id, "retry")), "queued again", job_id, as_json)


@jobs.command()
@click.argument("job_id")
@_talking
def delete(job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Forget a finished job and its assets."""
    answer = _connect(url, key).delete(_path(job_id))
    _act(answer or {"job_id": job_id, "deleted": True}, "deleted", job_id, as_json)


@jobs.command()
@click.argument("job_id")
@_talking
def watch(job_id: str, url: str | None, key: str | None, as_json: bool) -> None:
    """Follow a job to its end. Exit status 0 when it completed, else 1."""
    _watch(_connect(url, key), job_id, as_json)


def _watch(shim: Shim, job_id: str, as_json: bool) -> None:
    from rich.console import Console
    from rich.progress import Progress

    shim.job(job_id)
    heard = ""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(job_id, total=100.0)
        for event in shim.events(job_id):
            bar.update(line, completed=progress_of(event), description=description_of(event))
            if as_json and event.kind != "preview":
                print_json({"event": event.kind, **event.data})
            elif not as_json and (event.kind == "token" or heard):
                bar.stop()
                heard = _read_on(event, heard)
    _present(shim.job(job_id), as_json, heard)


def _read_on(event: Event, heard: str) -> str:
    """Print what an event adds to a text that grows; what has been heard by then. Another attempt begins
    it anew."""
    if event.kind == "token":
        click.echo(event.data["text"], nl=False)
        return heard + str(event.data["text"])
    if event.kind in ("state", "done"):
        click.echo()
    return "" if event.kind == "state" else heard


def progress_of(event: Event) -> float | None:
    """How far the job is by this event (0 to 100); None when it does not say."""
    if event.kind == "done" and event.data.get("status") == "completed":
        return 100.0
    said = event.data.get("progress")
    return float(said) if isinstance(said, int | float) else None


def description_of(event: Event) -> str | None:
    """What the job is doing by this event; None when it does not say."""
    said = event.data.get("stage") or event.data.get("status")
    return str(said) if said else None


def _present(job: dict[str, Any], as_json: bool, heard: str = "") -> None:
    """Show a job, but not the text that was `heard` already; a failed or cancelled one is exit status 1."""
    if as_json:
        print_json(job)
    else:
        click.echo(f"{job['job_id']}  {job['status']}  {job.get('progress', 0):.0f} %")
        for asset in (job.get("result") or {}).get("assets", ()):
            shown = asset if isinstance(asset, str) else _shown(asset)
            if shown != heard:
                click.echo(shown)
        if job.get("error"):
            print_note(f"{job['error'].get('code')}: {job['error'].get('message')}")
    if job["status"] in ("failed", "cancelled"):
        raise click.exceptions.Exit(1)


def _shown(asset: dict[str, Any]) -> str:
    """Where an asset is; what it says, where it is a text or a document."""
    told = asset.get("metadata") or {}
    if asset["type"] == "text":
        return str(told["text"])
    if asset["type"] == "json":
        return json.dumps(told["result"], indent=2)
    return str(asset.get("url") or asset["type"])


def _act(answer: Any, done: str, job_id: str, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{job_id}  {done}")


def _path(job_id: str, *more: str) -> str:
    return "/".join(("/jobs", quote(job_id, safe=""), *more))


def _read(file: IO[bytes]) -> Any:
    try:
        return json.loads(file.read())
    except ValueError as broken:
        raise click.UsageError(f"{file.name} holds no JSON: {broken}") from None


def _size(text: str | None) -> dict[str, int]:
    if text is None:
        return {}
    width, found, height = text.lower().partition("x")
    if not (found and width.isdigit() and height.isdigit()):
        raise click.UsageError("--size is WIDTHxHEIGHT, for example 1024x1024")
    return {"width": int(width), "height": int(height)}
