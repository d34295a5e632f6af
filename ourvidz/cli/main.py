"""The `ourvidz` command. A subcommand's module is imported when it is used, so `--help` stays fast."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from ourvidz import __version__
from ourvidz.errors import OurvidzError, SettingsError

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("ourvidz.cli.up:up", "Start everything on this machine and keep it running."),
    "demo": ("ourvidz.cli.demo:demo", "Start everything, make one picture, show where it went."),
    "worker": ("ourvidz.cli.worker:worker", "Be one process: web, sdxl, wan, chat, io, keeper or clock."),
    "jobs": ("ourvidz.cli.jobs:jobs", "Submit, watch and manage jobs over HTTP."),
    "callbacks": ("ourvidz.cli.callbacks:callbacks", "List, show and replay callbacks."),
    "models": ("ourvidz.cli.models:models", "List and verify the checkpoints."),
    "doctor": ("ourvidz.cli.doctor:doctor", "Check that this machine has what it needs."),
}
"""Name → where it is, and its line in the help."""


BESIDE_UP = frozenset({"callbacks"})
"""Commands that talk to the ledger of the running `ourvidz up`."""


class _WrongSetting(click.ClickException):
    exit_code = 2


class LazyGroup(click.Group):
    """A group that imports a command only to run it, and shows our errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command by name."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in BESIDE_UP:
            # Before the import: Celery's settings are read with the module.
            from ourvidz.cli.state import use_running_stack

            use_running_stack()
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        found: click.Command = getattr(import_module(module), name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The help of every command, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of ours is one line, exit status 2 for a setting and 1 for the rest."""
        try:
            return super().invoke(ctx)
        except OurvidzError as error:
            raise (_WrongSetting if isinstance(error, SettingsError) else click.ClickException)(
                error.message
            ) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ourvidz")
def cli() -> None:
    """AI images, videos and chat as Celery tasks."""


def main() -> None:
    """The entry point of the `ourvidz` script. Standard output is for results: the log goes elsewhere."""
    if not {"-h", "--help", "--version"} & set(sys.argv):
        from ourvidz import log

        log.configure("WARNING")
    sys.exit(cli(prog_name="ourvidz"))


if __name__ == "__main__":
    main()
