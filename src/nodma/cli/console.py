"""Where tables go: the terminal, or a page."""

from __future__ import annotations

import io
from typing import Final

import click
from rich.console import Console
from rich.table import Table

_WIDTH: Final = 100
"""Columns to fill where there is no terminal to ask."""


def make_console() -> Console:
    """Return a console as wide as the terminal, or as a page where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH)


def print_table(table: Table) -> None:
    """Print a table: on a terminal as it is, elsewhere without the blanks that only fill it up."""
    console = make_console()
    if console.is_terminal:
        console.print(table)
        return
    text = io.StringIO()
    Console(highlight=False, width=_WIDTH, file=text).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    click.echo("\n".join(line for line in lines if line))
