"""`ourvidz healthcheck`: the health check of a container, over the beats of its process or over HTTP."""

from __future__ import annotations

from http import HTTPStatus

import click

from ourvidz.cli.checks import NETWORK_TIMEOUT_S
from ourvidz.liveness.beats import beat_ages
from ourvidz.net.client import HttpClient, RequestFailure
from ourvidz.settings import settings

SILENT_S = 60.0
"""How long a part of a process may show no sign of life. Loading models may keep other threads waiting, so
workers that hold models need more: 180 s, as under `ourvidz up`."""


@click.command(short_help="Check that the process of this container is alive.")
@click.option(
    "--silent",
    "silent_s",
    type=click.FloatRange(min=1),
    default=SILENT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long a part of the process may show no sign of life.",
)
@click.option("--url", help="Send GET to this URL instead; any status below 400 is healthy.")
def healthcheck(silent_s: float, url: str | None) -> None:
    """Check that the process of this container is alive: exit status 0, or 1 with the reason.

    Every part of a process (its event loop, its duties, the child with the models) changes the time of a file
    in OURVIDZ_BEATS_DIR, which is best a tmpfs.
    """
    problem = _problem_of_url(url) if url else _problem_of_beats(silent_s)
    if problem:
        raise click.ClickException(problem)


def _problem_of_beats(silent_s: float) -> str | None:
    folder = settings().beats_dir
    if folder is None:
        raise click.UsageError(
            "set OURVIDZ_BEATS_DIR for this process and for its health check, or pass --url"
        )
    ages = beat_ages(folder)
    if not ages:
        return f"no part of the process has shown a sign of life in {folder}"
    part, age_s = max(ages.items(), key=lambda item: item[1])
    return f"{part} has shown no sign of life for {age_s:.0f} s" if age_s > silent_s else None


def _problem_of_url(url: str) -> str | None:
    response = HttpClient(timeout_s=NETWORK_TIMEOUT_S).get(url, headers={})
    if isinstance(response, RequestFailure):
        return f"{url}: {response.reason}"
    if response.status >= HTTPStatus.BAD_REQUEST:
        return f"{url} answers {response.status}"
    return None
