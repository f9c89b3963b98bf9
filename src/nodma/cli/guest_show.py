"""What the guest commands print."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nodma.cli.console import print_table
from nodma.cli.json_line import echo_json
from nodma.guest import Kit
from nodma.guest.doctor import Finding
from nodma.guest.job import PROGRAMS
from nodma.guest.kit import GENERIC, short_name
from nodma.guest.prove import Proof
from nodma.units import show_size


def make_bar(console: Console, *, hidden: bool) -> Progress:
    """Return a progress bar for long work, which shows only on a terminal."""
    return Progress(
        TextColumn("{task.description:<48}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=hidden or not console.is_terminal,
    )


def show_findings(console: Console, findings: Iterable[Finding], as_json: bool) -> bool:
    """Print what the doctor finds, as it finds it; give whether guests can be run."""
    seen = []
    for finding in findings:
        seen.append(finding)
        if not as_json:
            mark = "[green]ok[/green]" if finding.fine else "[red]no[/red]" if finding.needed else "[yellow]no[/yellow]"
            console.print(f"{mark}  {finding.what:<14}  ", end="")
            console.print(finding.says, markup=False, soft_wrap=True)
    well = all(finding.fine for finding in seen if finding.needed)
    if as_json:
        echo_json({"guests_can_run": well, "findings": [dataclasses.asdict(one) for one in seen]})
    else:
        click.echo("Guests can be run." if well else "Guests cannot be run: `nodma guest setup` may help.")
    return well


def _unanswered(proof: Proof) -> str:
    return f"; {proof.unanswered} other processes hang and were not inspected" if proof.unanswered else ""


def show_proof(console: Console, proof: Proof) -> None:
    """Put it on one screen."""
    report, counters = proof.report, proof.counters
    device = report["device"]
    shared: Counter[str] = Counter()
    for mapped in proof.maps:
        shared[mapped.name] += mapped.size if mapped.writable_shared else 0
    console.print(
        f"[bold]nodma guest prove[/bold]: Linux {proof.kernel} on QEMU {proof.qemu} ({proof.accelerator}), guest memory"
        f" {show_size(proof.guest_memory)}, shared."
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "handed over": f"{report['dma_descriptors_closed']} descriptors of guest memory in {report['dma_maps']} DMA_MAP"
        " messages; closed at once, 0 kept, 0 bytes mapped",
        "canary": f"{proof.canary_filled >> 20} MiB of the guest's memory filled with it, half of that freed for I/O",
        "searched": f"{proof.scanned >> 20} MiB, all that there is in its {len(proof.maps)} mappings;"
        f" {proof.unread} bytes cannot be read{_unanswered(proof)}",
        "shared with it": ", ".join(f"{name} {show_size(size)}" for name, size in shared.items() if size),
        "open in it": ", ".join(sorted({item.target.split(":[")[0] for item in proof.descriptors})),
        "requests": f"{report['requests']}, including {device['reads']} reads and {device['writes']} writes;"
        f" {report['addresses_outside_window']} addresses outside the window",
        "bounced": f"{counters['bytes_from_device'] >> 20} MiB from the device,"
        f" {counters['bytes_to_device'] >> 20} MiB to it, {counters['maps']} mappings,"
        f" peak {counters['peak']} of {counters['slots']} slots, {counters['full']} waits",
    }
    for left, right in rows.items():
        table.add_row(f"  {left}", right)
    print_table(table)
    console.print("[bold]What held[/bold]")
    for check in proof.checks:
        mark = "[green]  ok[/green]" if check.holds else "[red]  NOT[/red]"
        console.print(f"{mark}  {check.says}")


def show_kit(kit: Kit, as_json: bool) -> None:
    """Print what the kit has."""
    qemu = kit.qemu
    shown = ".".join(map(str, qemu.version))
    if as_json:
        kernels = [{"name": short_name(kernel)} | dataclasses.asdict(kernel) for kernel in kit.kernels]
        record: dict[str, Any] = {"directory": str(kit.directory), "kernels": kernels, "programs": list(PROGRAMS)}
        debug = kit.debug_kernel.release if kit.debug_kernel else None
        generic = kit.kernel(GENERIC).release if kit.has(GENERIC) else None
        echo_json(
            record | {"generic_kernel": generic, "debug_kernel": debug, "qemu": {"version": shown, "from": qemu.origin}}
        )
        return
    click.echo(f"QEMU     {shown}, from {qemu.origin}")
    for kernel in kit.kernels:
        click.echo(f"kernel   {short_name(kernel):<5} {kernel.release}, from {kernel.suite}")
    if kit.has(GENERIC):
        click.echo(f"kernel   {GENERIC} {kit.kernel(GENERIC).release}, for any machine")
    if kit.debug_kernel:
        click.echo(f"kernel   {kit.debug_kernel.name:<5} {kit.debug_kernel.release}, built here")
    click.echo(f"programs {', '.join(PROGRAMS)}")
    click.echo(f"in       {kit.directory}")
