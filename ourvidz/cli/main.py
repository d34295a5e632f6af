"""The `ourvidz` command. A subcommand's module is imported only to run it, so `--help` stays fast."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from ourvidz import __version__
from ourvidz.errors import OurvidzError, SettingsError
from ourvidz.startup import collector_paused

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("ourvidz.cli.up:up", "Start everything on this machine and keep it running."),
    "demo": ("ourvidz.cli.demo:demo", "Start everything, make some pictures, show them."),
    "worker": ("ourvidz.cli.worker:worker", "Run one process: web, sdxl, wan, chat, io or keeper."),
    "jobs": ("ourvidz.cli.jobs:jobs", "Submit, watch and manage jobs over HTTP."),
    "callbacks": ("ourvidz.cli.callbacks:callbacks", "List, show and replay callbacks."),
    "keys": ("ourvidz.cli.keys:keys", "Create, list, rotate and revoke API keys."),
    "users": ("ourvidz.cli.users:users", "Erase what is stored of a user."),
    "audit": ("ourvidz.cli.audit:audit", "Verify the audit logs of this host."),
    "imports": ("ourvidz.cli.imports:imports", "List and repeat refused entries of raw lists."),
    "replay": ("ourvidz.cli.replay:replay", "Run a job again, and say whether its result is the same."),
    "ledger": ("ourvidz.cli.ledger:ledger", "Check the records, queues and callbacks, and mend them."),
    "fleet": ("ourvidz.cli.fleet:fleet", "Simulate an autoscaled fleet."),
    "memory": ("ourvidz.cli.memory:memory", "Show the memory of the GPUs, and move models."),
    "models": ("ourvidz.cli.models:models", "Pull, list, verify and delete checkpoints."),
    "storage": ("ourvidz.cli.storage:storage", "Create the buckets of the storage."),
    "healthcheck": (
        "ourvidz.cli.healthcheck:healthcheck",
        "Check that the process of this container is alive.",
    ),
    "rehearse": (
        "ourvidz.cli.rehearse:rehearse",
        "Run a small job of each type, and check all that comes of it.",
    ),
    "flower": ("ourvidz.cli.flower:flower", "Run Flower, Celery's monitor, with a login."),
    "doctor": ("ourvidz.cli.doctor:doctor", "Check that this machine has what it needs."),
}
"""Name → (module:attribute, line in the help)."""
USES_RUNNING_STACK = frozenset({"callbacks", "imports", "keys", "ledger", "replay"})
"""Commands that use the Redis server of the running `ourvidz up`."""


WITHOUT_ENV_FILE = frozenset({"callbacks", "jobs", "keys", "memory", "rehearse"})
"""Commands that send credentials to where the settings say: not to where a file says that lies in the working
directory."""


class _SettingsFailure(click.ClickException):
    exit_code = 2


class LazyGroup(click.Group):
    """A click group that imports a command only to run it, and prints an `OurvidzError` as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names of the commands, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command by name; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in USES_RUNNING_STACK:
            # Before the import: the module imports the Celery app, which reads the settings.
            from ourvidz.cli.state import use_running_stack

            use_running_stack()
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        with collector_paused():
            command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands section of the help, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. An `OurvidzError` becomes one line; exit status 2 if a `SettingsError`, else 1."""
        try:
            return super().invoke(ctx)
        except OurvidzError as error:
            raise (_SettingsFailure if isinstance(error, SettingsError) else click.ClickException)(
                error.message
            ) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ourvidz")
@click.option(
    "--env-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=lambda _ctx, _parameter, file: _use_env_file(file),
    help="A file of settings, read instead of .env.",
)
def cli() -> None:
    """AI images, videos and chat as Celery tasks."""


def _use_env_file(file: Path | None) -> None:
    if file is not None:
        from ourvidz.settings import set_environment

        set_environment(OURVIDZ_ENV_FILE=str(file.absolute()))


def _command_of(arguments: Sequence[str]) -> str | None:
    """The name of the command in the arguments of `ourvidz`."""
    words = iter(arguments)
    for word in words:
        if word == "--env-file":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


def main() -> None:
    """Entry point of the `ourvidz` script. Results go to standard output, the log to standard error."""
    if not {"-h", "--help", "--version"} & set(sys.argv):
        from ourvidz import log

        log.configure("WARNING")
        if _command_of(sys.argv[1:]) in WITHOUT_ENV_FILE and not any(
            word.startswith("--env-file") for word in sys.argv
        ):
            from ourvidz.settings import ignore_env_file

            if ignore_env_file():
                click.echo("The .env of this directory is not read: pass --env-file .env.", err=True)
    sys.exit(cli(prog_name="ourvidz"))


if __name__ == "__main__":
    main()
