"""Write the manual pages and the shells' completion scripts in docs/, from the commands themselves.

Run by ``make man``. With --check nothing is written; it fails if what is there is not what would be.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from nodma import __version__
from nodma.cli import cli

DOCS = Path(__file__).parents[1] / "docs"
SHELLS = {"nodma.bash": BashComplete, "nodma.zsh": ZshComplete, "nodma.fish": FishComplete}
EXIT_CODES = (("0", "All is well."), ("1", "What was asked for failed."), ("2", "The command line is wrong."))


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield a command with its full name, and all those below it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            if (below := command.get_command(context, name)) and not below.hidden:
                yield from commands(below, (*path, name))


def page(path: tuple[str, ...], command: click.Command) -> str:
    """Return a manual page in roff."""
    context = click.Context(command, info_name=" ".join(path))
    title = "-".join(path)
    lines = [
        f'.TH "{title.upper()}" "1" "" "nodma {__version__}" "User Commands"',
        ".SH NAME",
        f"{escape(title)} \\- {escape(command.get_short_help_str(200).rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {escape(' '.join(path))}",
        escape(" ".join(command.collect_usage_pieces(context))),
    ]
    if command.help:
        lines += [".SH DESCRIPTION", *paragraphs(command.help)]
    options = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    if options:
        lines += [".SH OPTIONS"]
        for names, text in options:
            lines += [".TP", f".B {escape(names)}", escape(" ".join(text.split()))]
    if isinstance(command, click.Group):
        lines += [".SH COMMANDS"]
        for name in command.list_commands(context):
            if (below := command.get_command(context, name)) and not below.hidden:
                lines += [".TP", f".BR {escape(title)}-{escape(name)} (1)", escape(below.get_short_help_str(200))]
    lines += [".SH EXIT STATUS"]
    for code, meaning in EXIT_CODES:
        lines += [".TP", f".B {code}", meaning]
    if len(path) > 1:
        lines += [".SH SEE ALSO", f".BR {escape('-'.join(path[:-1]))} (1)"]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def paragraphs(text: str) -> list[str]:
    """Return help text as paragraphs in roff."""
    parts = inspect.cleandoc(text.replace("\b", "")).split("\n\n")
    found = [line for part in parts for line in (".PP", escape(" ".join(part.split())))]
    return found[1:]


def escape(text: str) -> str:
    """Return text that roff shows as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def files() -> dict[Path, str]:
    """Return all files, with what is in them."""
    made = {DOCS / "man" / f"{'-'.join(path)}.1": page(path, command) for path, command in commands(cli, ("nodma",))}
    for name, shell in SHELLS.items():
        made[DOCS / "completion" / name] = shell(cli, {}, "nodma", "_NODMA_COMPLETE").source().strip() + "\n"
    return made


def main() -> None:
    """Write the files, or check them."""
    made = files()
    there = {path for folder in ("man", "completion") for path in (DOCS / folder).glob("*")}
    if "--check" in sys.argv[1:]:
        wrong = [path for path, text in made.items() if path not in there or path.read_text() != text]
        wrong += there - set(made)
        if wrong:
            sys.exit(f"not up to date, run `make man`: {', '.join(os.path.relpath(path) for path in sorted(wrong))}")
        return
    for path in there - set(made):
        path.unlink()
    for path, text in made.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
