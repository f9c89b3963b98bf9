"""``nodma serve --slot`` and ``nodma serve FILE.toml``: the functions of one slot, and how QEMU gets them."""

from __future__ import annotations

import logging
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from nodma.hosting import output
from nodma.hosting.attach import qemu_device
from nodma.hosting.child import Child
from nodma.hosting.host import Host, Report, serve
from nodma.hosting.listeners import Listeners
from nodma.hosting.lockdown import lock_down
from nodma.hosting.options import REPORT_OPTIONS, SOCKET_OPTIONS, WINDOW_OPTIONS, FilePath, add_options
from nodma.hosting.program import FAILED, end_failed, prepare
from nodma.hosting.signals import Signals
from nodma.hosting.slot import assemble_slot
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
from nodma.hosting.supervisor import END_SECONDS, KILL_SECONDS, Supervisor
from nodma.hosting.systemd import Notifier
from nodma.units import show_size

log = logging.getLogger(__name__)

_OPTIONS = (
    click.option("--config", type=FilePath(), metavar="FILE", help="Read all of it from a TOML file."),
    click.option(
        "--share", is_flag=True, help="One pool for all, in function 0's BAR: they can read each other's data."
    ),
    click.option(
        "--processes",
        type=click.Choice([kind.value for kind in Processes]),
        default=Processes.EACH.value,
        show_default=True,
        help="A process for each function, or one for all.",
    ),
    *WINDOW_OPTIONS,
    click.option(
        "--pci-slot",
        "slot",
        type=int,
        default=DEFAULT_SLOT,
        show_default=True,
        metavar="N",
        help="The PCI slot that the printed QEMU arguments name.",
    ),
    *SOCKET_OPTIONS,
    *REPORT_OPTIONS,
)


def _run(
    *,
    functions: tuple[str, ...],
    config: Path | None,
    verbose: int,
    as_json: bool,
    auditable: bool,
    socket_mode: int | None,
    socket_group: str | None,
    **options: Any,
) -> None:
    """Serve several functions of one PCI slot, a socket each.

    A FUNCTION is a device with its options, as in blk,socket=a.sock,image=a.img,read-only; a comma that belongs to a
    value is written twice. SIGTERM, SIGINT and SIGHUP end all of them in order. If one dies the others go on; the exit
    code is 1 then.
    """
    prepare(verbose)
    if (config is None) == (not functions):
        raise click.UsageError("give either functions or --config FILE: what to serve.")
    slot = load_config(config) if config else make_config({**options, "function": [*map(parse_function, functions)]})
    listeners = Listeners(socket_mode, socket_group)
    if len(slot.users) > 1:
        log.warning("%s", _who_shares(slot))
    if slot.processes is Processes.ONE:
        reports = _serve_here(slot, listeners, auditable, as_json)
    else:
        words = [*listeners.words, *["-v"] * verbose, *["--auditable"] * auditable]
        reports = _supervise(slot, listeners, words, auditable, as_json)
    if as_json:
        output.say_json({"event": "end", "functions": reports})
    if any(report["status"] != 0 for report in reports):
        end_failed()


serve_slot: click.Command = add_options(
    click.argument("functions", nargs=-1, metavar="FUNCTION...")(click.command("slot")(_run)), _OPTIONS
)


def _serve_here(slot: SlotConfig, listeners: Listeners, auditable: bool, as_json: bool) -> list[Report]:
    """Serve all functions from this process."""

    reports = serve(
        Host(),
        lambda host: assemble_slot(host, slot, listeners),
        lambda host: _announce(slot, [hosted.function.describe() for hosted in host.functions], auditable, as_json),
        auditable=auditable,
    )
    return [
        {"function": number, "status": FAILED if report["problems"] else 0, "report": report}
        for number, report in enumerate(reports)
    ]


def _supervise(
    slot: SlotConfig, listeners: Listeners, words: list[str], auditable: bool, as_json: bool
) -> list[Report]:
    """Serve each function from a process of its own."""
    notifier = Notifier()
    supervisor = Supervisor(
        slot, died=lambda child, status: _say_death(child, status, as_json), listeners=listeners, words=words
    )

    def stop() -> None:
        notifier.stopping()
        supervisor.stop()

    limit = END_SECONDS + KILL_SECONDS + 1  # more than an orderly end of all processes can take
    with Signals(stop=stop, reload=supervisor.reload, give_up=supervisor.give_up, seconds=limit), supervisor:
        if not supervisor.loop.stopping:
            lock_down(auditable=auditable)
            _announce(slot, [child.ready or "" for child in supervisor.children], auditable, as_json)
            notifier.ready("serving")
        return supervisor.run()


def qemu_arguments(slot: SlotConfig) -> list[str]:
    """Return QEMU's arguments for the functions of a slot."""
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


def _announce(slot: SlotConfig, described: Sequence[str], auditable: bool, as_json: bool) -> None:
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
        output.say_json({"event": "ready", "functions": functions, "auditable": auditable, "qemu": arguments})
        return
    for function, text in zip(slot.functions, described, strict=True):
        output.say(f"function {function.number}: {text} on {function.socket}, {_window(slot, function)}")
    output.say(f"ready{' (auditable)' if auditable else ''}, attach: {shlex.join(arguments)}")


def _window(slot: SlotConfig, function: FunctionConfig) -> str:
    if function.role is Role.SHARER:
        assert slot.owner
        return f"in the pool of function {slot.owner.number}"
    shared = ", for others too" if function.role is Role.OWNER else ""
    return f"a pool of {show_size(function.pool)}{shared}"


def _say_death(child: Child, status: int, as_json: bool) -> None:
    """Report a process that ended by itself; the others go on."""
    how = f"exit code {status}"
    if status < 0:
        names = {number.value: number.name for number in signal.Signals}
        how = names.get(-status, f"signal {-status}")
    output.say_error(f"the process of {child.config.name} ended with {how}; the others go on")
    if as_json:
        output.say_json({"event": "died", "function": child.config.number, "status": status})
