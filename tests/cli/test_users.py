"""`ourvidz users` against a real shim over HTTP."""

from __future__ import annotations

import json

from click.testing import CliRunner

from ourvidz import dispatch
from ourvidz.cli.main import cli
from ourvidz.wiring import control
from tests.cli.test_jobs import KEY, app, url  # noqa: F401  fixtures


def test_a_user_is_erased_until_nothing_is_left_and_only_if_confirmed(
    app: control.ControlPlane,  # noqa: F811
    url: str,  # noqa: F811
) -> None:
    """A job that runs is left: the exit status says so."""

    def erase(*options: str, **more: str) -> tuple[int, str]:
        argv = ["users", "erase", "ann", "--url", url, "--api-key", KEY, "--timeout", "0", *options]
        result = CliRunner().invoke(cli, argv, **more)
        return result.exit_code, result.stdout

    with control.using(app):
        job = {"type": "sdxl_image_fast", "prompt": "a hill", "user_id": "ann"}
        dispatch.submit({"id": "job-1", **job})
        assert erase(input="n\n")[0] == 1
        assert app.ledger.exists("job-1")
        status, output = erase("--yes", "--json")
        assert (status, json.loads(output)["jobs"]) == (0, 1)
        assert not app.ledger.exists("job-1")
        assert erase("--yes")[1].endswith("Nothing is left of ann.\n")
