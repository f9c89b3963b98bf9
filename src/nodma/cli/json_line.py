"""What ``--json`` prints: one object a line, with the number of its format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click


def echo_json(record: Mapping[str, Any], *, format_number: int = 1) -> None:
    """Print an object with its ``format``: another number where a key goes, or means something else."""
    click.echo(json.dumps({"format": format_number, **record}))
