"""The ``nodma`` command: one file a subcommand.

Exit codes: 0 all is well, 1 what was asked for failed, 2 it was not asked for properly, 130 interrupted.
"""

from __future__ import annotations

import importlib
from typing import Final

import click

from nodma import __version__
from nodma.hosting.program import run

_COMMANDS: Final = {
    "demo": "Demonstrate a disk that never touches guest memory.",
    "guest": "Boot real guests with devices that never touch their memory.",
    "inspect": "Decode a PCI function and check it against the clauses.",
    "serve": "Serve a device on a socket, or the functions of a slot.",
    "size": "Calculate how large a pool a set of devices needs.",
}


class _Commands(click.Group):
    """Load a subcommand when it is asked for: a device process starts fast, and stays small."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        try:
            command: click.Command = getattr(importlib.import_module(f"nodma.cli.{cmd_name}"), cmd_name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] == "nodma":
                raise
            raise click.ClickException(
                f"`nodma {cmd_name}` needs the package {error.name}: pip install 'nodma[{cmd_name}]'"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nodma")
def cli() -> None:
    """Virtio devices in processes of their own that never touch guest memory."""


def main() -> None:
    """Run the command line."""
    run(cli, "nodma")
