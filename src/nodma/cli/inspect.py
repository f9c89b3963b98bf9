"""``nodma inspect``: say what a PCI function presents, and what of it breaks which clause."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

import click

from nodma.cli.inspect_socket import inspect_regions
from nodma.cli.json_line import echo_json
from nodma.errors import Unavailable, UsageError
from nodma.pci.audit import Severity
from nodma.pci.config import ConfigSpace
from nodma.pci.dump import decode_dump, parse_dump, write_dump
from nodma.pci.record import FORMAT, to_json
from nodma.pci.report import Report
from nodma.pci.sysfs import full_address, read_function
from nodma.pci.text import render
from nodma.vfio_user.client import Client

_EXIT_CODES: Final[Mapping[Severity, int]] = {"warning": 3, "error": 4}
_MAX_DUMP: Final = 64 << 20
"""Bytes: more is not a dump but a disk image given by mistake."""


@click.command()
@click.argument("source")
@click.option(
    "-v",
    "--verbose",
    count=True,
    help="Show header, BARs and capabilities; twice: everything, and the clauses that it breaks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, one for each function.")
@click.option("--hexdump", is_flag=True, help="Print what `lspci -F` reads.")
@click.option("--check", is_flag=True, help="Exit with 3 if there are warnings, with 4 if there are errors.")
@click.pass_context
def inspect(context: click.Context, *, source: str, verbose: int, as_json: bool, hexdump: bool, check: bool) -> None:
    """Decode a PCI function and check it against the clauses.

    SOURCE is a server's socket, the PCI address of a function of this machine (05:00.0), a file that
    `lspci -xxxx` wrote, or - for such a dump on standard input. The function is left as it was found.
    """
    if as_json and hexdump:
        raise click.UsageError("give either --json or --hexdump.")
    reports = _reports(source)
    for number, report in enumerate(reports):
        for problem in report.problems:
            click.echo(f"nodma: warning: {problem}", err=True)
        if as_json:
            echo_json(to_json(report), format_number=FORMAT)
            continue
        if number and (verbose or hexdump):
            click.echo()
        click.echo(write_dump(report.slot, report.space) if hexdump else render(report, verbose), nl=False)
    if check:
        _check(context, reports)


def _check(context: click.Context, reports: list[Report]) -> None:
    """Exit by the worst finding. Raises Unavailable where there is nothing to check."""
    if absent := [report.slot for report in reports if not report.space.answers]:
        raise Unavailable(f"nothing to check: no function answers at {', '.join(absent)}")
    severities = {finding.severity for report in reports for finding in report.findings}
    context.exit(max((_EXIT_CODES[severity] for severity in severities), default=0))


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
        f"cannot inspect {source!r}: give the socket of a running server, a PCI address such as 05:00.0,"
        " a file that `lspci -xxxx` wrote, or - to read such a dump from standard input"
    )


def _from_dump(name: str, file: BinaryIO) -> list[Report]:
    data = file.read(_MAX_DUMP + 1)
    if len(data) > _MAX_DUMP:
        raise UsageError(f"{name} has more than {_MAX_DUMP >> 20} MiB: expected a dump that `lspci -xxxx` wrote")
    try:
        functions = parse_dump(decode_dump(data))
    except UsageError as error:
        raise UsageError(f"{name}, {error}") from error
    if not functions:
        raise UsageError(f"{name} has no rows of a configuration space: write it with `lspci -xxxx`")
    return [Report(found.slot, ConfigSpace.parse(found.raw, ids=found.ids)) for found in functions]
