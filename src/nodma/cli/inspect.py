"""``nodma inspect``: say what a PCI function presents, and what of it breaks which clause."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import BinaryIO, Final

import click

from nodma.cli.inspect_socket import inspect_regions
from nodma.errors import Unavailable, UsageError
from nodma.pci.config import ConfigSpace
from nodma.pci.dump import parse_dump, write_dump
from nodma.pci.record import to_json
from nodma.pci.report import Report
from nodma.pci.sysfs import full_address, read_function
from nodma.pci.text import render
from nodma.vfio_user.client import Client

_MAX_DUMP: Final = 64 << 20
"""Bytes: more is no dump, but a disk image given by mistake."""


@click.command()
@click.argument("source")
@click.option("-v", "--verbose", count=True, help="Header, BARs and capabilities; twice: all, and what breaks what.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, one for each function.")
@click.option("--hexdump", is_flag=True, help="Print what `lspci -F` reads.")
def inspect(*, source: str, verbose: int, as_json: bool, hexdump: bool) -> None:
    """Decode a PCI function, and say what breaks which clause.

    SOURCE is a server's socket, the PCI address of a function of this machine (05:00.0), a file that
    `lspci -xxxx` wrote, or - for such a dump on standard input. The function is left as it was found.
    """
    if as_json and hexdump:
        raise click.UsageError("give either --json or --hexdump.")
    for number, report in enumerate(_reports(source)):
        for problem in report.problems:
            click.echo(f"nodma: warning: {problem}", err=True)
        if as_json:
            click.echo(json.dumps(to_json(report)))
            continue
        if number and (verbose or hexdump):
            click.echo()
        click.echo(write_dump(report.slot, report.space) if hexdump else render(report, verbose), nl=False)


def _reports(source: str) -> list[Report]:
    """Read the function, or functions, that ``source`` names."""
    path = Path(source)
    if source == "-":
        return _from_dump("standard input", sys.stdin.buffer)
    if path.is_socket():
        with Client.connect(path) as client:
            return [inspect_regions(client)]
    if path.is_file():
        try:
            with path.open("rb") as file:
                return _from_dump(source, file)
        except OSError as error:
            raise Unavailable(f"{source} cannot be read: {error.strerror}") from error
    if full_address(source):
        return [read_function(source)]
    raise UsageError(
        f"{source!r} is nothing to inspect: give the socket of a running server, a PCI address such as 05:00.0,"
        " a file that `lspci -xxxx` wrote, or - to read such a dump from standard input"
    )


def _from_dump(name: str, file: BinaryIO) -> list[Report]:
    data = file.read(_MAX_DUMP + 1)
    if len(data) > _MAX_DUMP:
        raise UsageError(f"{name} has more than {_MAX_DUMP >> 20} MiB: it is no dump that `lspci -xxxx` wrote")
    try:
        devices = parse_dump(data.decode(errors="replace"))
    except UsageError as error:
        raise UsageError(f"{name}, {error}") from error
    if not devices:
        raise UsageError(f"{name} has no device in it: write it with `lspci -xxxx`")
    return [Report(slot, ConfigSpace.parse(raw)) for slot, raw in devices]
