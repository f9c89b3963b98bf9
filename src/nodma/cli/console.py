"""Where tables go: the terminal, or a page."""

from __future__ import annotations

from typing import Final

from rich.console import Console

_WIDTH: Final = 100
"""Columns to fill where there is no terminal to ask."""


def make_console() -> Console:
    """Give a console as wide as the terminal, or as a page where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH)
