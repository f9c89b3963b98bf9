"""``nodma serve --slot`` and ``nodma serve FILE.toml``: the functions of one slot, and how QEMU gets them."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import click

from nodma.hosting.host import Size, start_log
from nodma.hosting.process import qemu_device
from nodma.hosting.single_process import SingleProcess
from nodma.hosting.slot_config import (
    DEFAULT_SLOT,
    FunctionConfig,
    Processes,
    Role,
    SlotConfig,
    load_config,
    make_config,
    parse_function,
)
from nodma.hosting.supervisor import Child, Supervisor
from nodma.spec.profiles import PROFILES, SWIOTLB, Policy
from nodma.units import show_size

_DIED = 1


@click.command("slot")
@click.argument("functions", nargs=-1, metavar="FUNCTION...")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Read all of it from a TOML file.")
@click.option("--share", is_flag=True, help="One pool for all, in function 0's BAR. They can read each other's data.")
@click.option("--pool", type=Size(), default="16M", show_default=True, help="Each one's window, or the shared one.")
@click.option(
    "--profile", type=click.Choice(list(PROFILES)), default=SWIOTLB.name, show_default=True, help="Wire profile."
)
@click.option(
    "--policy",
    type=click.Choice([policy.value for policy in Policy]),
    default=Policy.REQUIRED.value,
    show_default=True,
    help="As of `nodma serve blk`.",
)
@click.option(
    "--processes",
    type=click.Choice([kind.value for kind in Processes]),
    default=Processes.EACH.value,
    show_default=True,
    help="A process for each function, or one for all.",
)
@click.option("--poll", is_flag=True, help="As of `nodma serve blk`.")
@click.option("--addr", "slot", type=int, default=DEFAULT_SLOT, show_default=True, help="QEMU's slot for them.")
@click.option("-v", "--verbose", count=True, help="Log what happens; twice: every refused message too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def serve_slot(*, functions: tuple[str, ...], config: Path | None, verbose: int, as_json: bool, **options: Any) -> None:
    """Serve several functions of one PCI slot, a socket each.

    A FUNCTION is a device with its options, as in blk,socket=a.sock,image=a.img,read-only. SIGTERM and SIGINT end all
    of them cleanly. If one dies the others go on; the exit code is 1 then.
    """
    start_log(verbose)
    if (config is None) == (not functions):
        raise click.UsageError("give either functions or --config FILE: what to serve.")
    slot = load_config(config) if config else make_config({**options, "function": [*map(parse_function, functions)]})
    if len(slot.users) > 1:
        click.echo(f"nodma: warning: {_who_shares(slot)}", err=True)
    reports = _serve(slot, verbose, as_json)
    if as_json:
        click.echo(json.dumps({"event": "end", "functions": reports}))
    if any(report["status"] != 0 for report in reports):
        sys.exit(_DIED)


def _serve(slot: SlotConfig, verbose: int, as_json: bool) -> list[dict[str, Any]]:
    if slot.processes is Processes.ONE:
        with SingleProcess(slot) as running:
            described = [function.describe() for function in running.functions]
            return _run(running, slot, described, as_json)
    with Supervisor(slot, died=lambda child, status: _say_death(child, status, as_json), verbose=verbose) as running:
        described = [child.ready["device"] for child in running.children if child.ready]
        return _run(running, slot, described, as_json)


def _run(
    running: SingleProcess | Supervisor, slot: SlotConfig, described: list[str], as_json: bool
) -> list[dict[str, Any]]:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    _announce(slot, described, as_json)
    return running.run()


def qemu_arguments(slot: SlotConfig) -> list[str]:
    """Give QEMU's arguments for the functions of a slot."""
    words = []
    for function in slot.functions:
        place: dict[str, str | bool] = {"addr": f"{slot.slot:x}.{function.number}"}
        if len(slot.functions) > 1:
            place["multifunction"] = True
        words += ["-device", qemu_device(str(function.socket), **place)]
    return words


def _who_shares(slot: SlotConfig) -> str:
    numbers = ", ".join(str(function.number) for function in slot.users)
    return f"functions {numbers} share one pool: each can read and change the data of the others"


def _announce(slot: SlotConfig, described: list[str], as_json: bool) -> None:
    """Say that all accept, and how to attach them."""
    arguments = qemu_arguments(slot)
    if as_json:
        functions = [
            {
                "function": function.number,
                "device": text,
                "socket": str(function.socket),
                "role": function.role.value,
                "pool": function.pool,
            }
            for function, text in zip(slot.functions, described, strict=True)
        ]
        click.echo(json.dumps({"event": "ready", "functions": functions, "qemu": arguments}))
    else:
        for function, text in zip(slot.functions, described, strict=True):
            click.echo(f"function {function.number}: {text} on {function.socket}, {_window(slot, function)}")
        click.echo(f"ready, attach: {shlex.join(arguments)}")
    sys.stdout.flush()


def _window(slot: SlotConfig, function: FunctionConfig) -> str:
    if function.role is Role.SHARER:
        assert slot.owner
        return f"in the pool of function {slot.owner.number}"
    shared = ", for others too" if function.role is Role.OWNER else ""
    return f"a pool of {show_size(function.pool)}{shared}"


def _say_death(child: Child, status: int, as_json: bool) -> None:
    """Report a process that ended by itself; the others go on."""
    how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
    what = f"the process of function {child.config.number} ({child.config.socket}) ended with {how}"
    click.echo(f"nodma: error: {what}; the others go on", err=True)
    if as_json:
        click.echo(json.dumps({"event": "died", "function": child.config.number, "status": status}))
        sys.stdout.flush()
