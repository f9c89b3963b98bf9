"""``nodma guest``: real guests with QEMU, on kernels that nobody patched."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from nodma.cli.console import make_console
from nodma.cli.guest_show import make_bar, show_findings, show_kit, show_proof
from nodma.cli.json_line import echo_json
from nodma.errors import GuestError, NodmaError, Unavailable, UsageError
from nodma.guest import Job, Kernel, Kit, Machine, Qemu, Shape, Tools, debug_kernel
from nodma.guest.accelerator import ACCELERATORS, choose
from nodma.guest.doctor import examine
from nodma.guest.job import PROGRAMS
from nodma.guest.kit import EXTRAS, GENERIC, set_up, short_name
from nodma.guest.kit import clean as clean_kit
from nodma.guest.kit_directory import kit_directory
from nodma.guest.lifetime import ended_by_signals, work_directory
from nodma.guest.machine import run_shell
from nodma.guest.prove import prove as make_proof
from nodma.guest.report import FORMAT as REPORT_FORMAT
from nodma.guest.report import make_report
from nodma.hosting.options import PoolSize
from nodma.hosting.process import DeviceProcess

_NOT_RUN = 125
"""The exit code of `run --script` when no status came from the script."""

_kit = click.option(
    "--kit",
    "place",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the kit is; $NODMA_KIT, or ~/.cache/nodma.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def guest() -> None:
    """Boot guests that use devices through restricted DMA, on kernels that nobody patched."""


@guest.command()
@_kit
@_json
@click.option("--mirror", metavar="URL", help="A Debian mirror.  [default: this machine's own]")
@click.option("--fetch-qemu", is_flag=True, help="Fetch QEMU even if the one on PATH would do.")
@click.option(
    "--with", "extras", type=click.Choice(list(EXTRAS)), multiple=True, help="Fetch this too; may be repeated."
)
@click.option(
    "--debug-kernel", "with_debug_kernel", is_flag=True, help="Build the debug kernel too: 15 minutes, 3 GB meanwhile."
)
def setup(
    *,
    place: Path | None,
    as_json: bool,
    mirror: str | None,
    fetch_qemu: bool,
    extras: tuple[str, ...],
    with_debug_kernel: bool,
) -> None:
    """Fetch QEMU, three Debian kernels with headers, and what runs in guests.

    Nothing is installed: packages are verified by apt, and unpacked into the kit's directory. What is there is not
    fetched again.
    """
    console = make_console()
    with make_bar(console, hidden=as_json) as bar:
        task = bar.add_task("checking what is there", total=1.0)
        last = ""

        def progress(what: str, done: float) -> None:
            nonlocal last
            bar.update(task, description=what, completed=done)
            if what != last and not console.is_terminal and not as_json:
                click.echo(what)
            last = what

        kit = set_up(place, mirror=mirror, fetch_qemu=fetch_qemu, extras=extras, progress=progress)
        for record in kit.kernels:
            progress(f"building the module for {short_name(record)}", 1.0)
            kit.kernel(record.release).build_module(kit.directory)
        if GENERIC in extras:
            kit.kernel(GENERIC).build_module(kit.directory)
        if with_debug_kernel:
            kernel = debug_kernel.build(kit.directory, mirror=mirror, progress=progress)
            progress("building the module for the debug kernel", 1.0)
            kernel.build_module(kit.directory)
    show_kit(kit, as_json)


@guest.command(name="list")
@_kit
@_json
def list_(*, place: Path | None, as_json: bool) -> None:
    """Show the kernels and programs of the kit."""
    show_kit(Kit.open(place), as_json)


@guest.command()
@_kit
@_json
def doctor(*, place: Path | None, as_json: bool) -> None:
    """Show what this machine has to run guests, what is missing, and why. Each answer was tried.

    The exit code is 0 if guests can be run, 1 if not.
    """
    if not show_findings(make_console(), examine(place), as_json):
        sys.exit(1)


@guest.command()
@_kit
def clean(*, place: Path | None) -> None:
    """Remove the kit, and what was built with it."""
    removed = clean_kit(place)
    click.echo(f"removed the kit in {removed}" if removed else f"there is no kit in {kit_directory(place)}")


@guest.command()
@_kit
@_json
@click.option(
    "--kernel",
    "kernel_name",
    default="6.12",
    show_default=True,
    metavar="NAME|FILE",
    help="A kernel of the kit, or a vmlinuz file.",
)
@click.option(
    "--modules",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With a vmlinuz: its /lib/modules/RELEASE, if it is not found.",
)
@click.option(
    "--module-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With a vmlinuz: nodma.ko built for it, if the kit cannot.",
)
@click.option("--qemu", "qemu_path", type=click.Path(path_type=Path), metavar="FILE", help="Use this QEMU.")
@click.option(
    "--disk",
    "disks",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    metavar="IMAGE",
    help="Serve this image, and attach it.",
)
@click.option("--pool", type=PoolSize(), default="16M", show_default=True, help="The window's size for each --disk.")
@click.option(
    "--queues",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Request queues for each --disk.",
)
@click.option(
    "--socket",
    "sockets",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Attach the device served on this socket.",
)
@click.option(
    "--script",
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE",
    help="Run this script in the guest instead of a shell.",
)
@click.option(
    "--file",
    "files",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    metavar="FILE",
    help="Copy this into /job in the guest.",
)
@click.option(
    "--program", "programs", type=click.Choice(list(PROGRAMS)), multiple=True, help="Copy this program into the guest."
)
@click.option(
    "--driver",
    "drivers",
    multiple=True,
    default=("virtio_blk",),
    show_default=True,
    metavar="NAME",
    help="Load this driver.",
)
@click.option("--no-module", is_flag=True, help="Do not load nodma's kernel module.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Copy the guest's /out to this directory.")
@click.option(
    "--memory", type=click.IntRange(1), default=512, show_default=True, metavar="MIB", help="The guest's memory."
)
@click.option(
    "--cpus", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="The guest's processors."
)
@click.option("--append", default="", metavar="TEXT", help="Append this to the kernel's command line.")
@click.option(
    "--accelerator",
    type=click.Choice(["auto", *ACCELERATORS]),
    default="auto",
    show_default=True,
    help="How to run the guest; auto takes KVM if it works.",
)
@click.option("--timeout", default=600.0, show_default=True, metavar="SECONDS", help="Stop a script that takes longer.")
def run(**options: Any) -> None:
    """Boot a guest with disks that never touch its memory; a shell on its console, or a script.

    With --script the exit code is the script's, or 125 if it did not get to its end; the guest's console goes to
    stderr.
    """
    try:
        status = _run(**options)
    except NodmaError as error:
        click.echo(f"nodma: error: {error}", err=True)
        status = _NOT_RUN if options["script"] else 1
    sys.exit(status)


def _run(
    *, script: Path | None, disks: tuple[Path, ...], sockets: tuple[Path, ...], as_json: bool, **options: Any
) -> int:
    tools, kernel = _choose(**options)
    accelerator = options["accelerator"] if options["accelerator"] != "auto" else choose(tools, kernel)
    click.echo(f"nodma: {kernel.release} on QEMU {'.'.join(map(str, tools.qemu.version))} with {accelerator}", err=True)
    drivers = list(options["drivers"]) if options["no_module"] else ["nodma", *options["drivers"]]
    job = Job(
        script.read_text() if script else None,
        drivers=drivers,
        programs=options["programs"],
        files={path.name: path for path in options["files"]},
    )
    shape = Shape(memory=options["memory"], cpus=options["cpus"], accelerator=accelerator, append=options["append"])
    with ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        work = stack.enter_context(work_directory("nodma-guest-"))
        functions = list(sockets)
        for number, image in enumerate(disks):
            functions.append(work / f"disk{number}.sock")
            served = DeviceProcess(
                image, functions[-1], "--pool", str(options["pool"]), "--queues", str(options["queues"])
            )
            stack.enter_context(served)
        if script is None:
            return run_shell(tools, kernel, job, functions, shape, work)
        with Machine(tools, kernel, job, functions=functions, shape=shape, directory=work) as machine:
            try:
                outcome = machine.finish(options["timeout"])
            finally:
                click.echo(machine.console.text, err=True, nl=False)
    if options["out"]:
        for name, content in outcome.files.items():
            path = options["out"] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    if as_json:
        record = {"status": outcome.status, "seconds": round(outcome.seconds, 3), "files": sorted(outcome.files)}
        echo_json(record | {"kernel": kernel.release, "accelerator": accelerator})
    return outcome.status


def _choose(
    *,
    place: Path | None,
    kernel_name: str,
    modules: Path | None,
    module_file: Path | None,
    qemu_path: Path | None,
    **_: Any,
) -> tuple[Tools, Kernel]:
    """Return QEMU and kernel: the user's where they are named, else the kit's."""
    qemu = Qemu.named(qemu_path) if qemu_path else None
    is_file = "/" in kernel_name or Path(kernel_name).is_file()
    if not is_file and (modules or module_file):
        raise UsageError("--modules and --module-file are for a kernel that is named as a file")
    try:
        kit = Kit.open(place)
        tools = dataclasses.replace(kit.tools, qemu=qemu.with_firmware(kit.root)) if qemu else kit.tools
    except Unavailable:
        qemu = qemu or Qemu.on_path()
        if not is_file or qemu is None:
            raise
        tools = Tools.of_this_machine(qemu, place)
    if is_file:
        return tools, Kernel.named(Path(kernel_name), modules, module_file, tools.root)
    return tools, kit.kernel(kernel_name)


@guest.command()
@_kit
@_json
@click.option("--kernel", "kernel_name", default="6.12", show_default=True, metavar="NAME", help="A kernel of the kit.")
@click.option(
    "--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep the guest's logs and disk in this directory."
)
def prove(*, place: Path | None, as_json: bool, kernel_name: str, keep: Path | None) -> None:
    """Show, from outside, that a device process never had any of its guest's memory.

    The guest's memory is shared, the worst case: QEMU hands it out. The exit code is 0 only if every check passes.
    """
    kit = Kit.open(place)
    kernel = kit.kernel(kernel_name)
    console = make_console()
    with ExitStack() as stack:
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
        stack.enter_context(ended_by_signals())
        work = keep or stack.enter_context(work_directory("nodma-prove-"))
        bar = stack.enter_context(make_bar(console, hidden=as_json))
        task = bar.add_task("looking for KVM", total=None)
        accelerator = choose(kit.tools, kernel)
        proof = make_proof(
            kit.tools, kernel, work, accelerator=accelerator, progress=lambda what: bar.update(task, description=what)
        )
    if as_json:
        echo_json(dataclasses.asdict(proof) | {"holds": proof.holds})
    else:
        show_proof(console, proof)
    if not proof.holds:
        raise GuestError("not every check passed: see above")


@guest.command()
@_kit
@click.option("--kernel", "kernel_name", default="6.12", show_default=True, metavar="NAME", help="A kernel of the kit.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="nodma-report.json",
    show_default=True,
    metavar="FILE",
    help="Where to write the report.",
)
def report(*, place: Path | None, kernel_name: str, out: Path) -> None:
    """Record what this host and its guests do with restricted DMA, in one file to post.

    Processor, KVM, SEV and TDX; how guests map a window; the proof, a short benchmark, the guest's log. It names no
    host, no user and no directory. What could not be recorded is listed in it.
    """
    kit = Kit.open(place)
    kernel = kit.kernel(kernel_name)
    with ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        work = stack.enter_context(work_directory("nodma-report-"))
        bar = stack.enter_context(make_bar(make_console(), hidden=False))
        task = bar.add_task("looking for KVM", total=None)
        accelerator = choose(kit.tools, kernel)
        record = make_report(
            kit.tools, kernel, work, accelerator=accelerator, progress=lambda what: bar.update(task, description=what)
        )
    out.write_text(json.dumps({"format": REPORT_FORMAT, **record}, indent=1) + "\n")
    for error in record["errors"]:
        click.echo(f"nodma: not recorded: {error}", err=True)
    click.echo(f"{out}: read it before you post it")
    if record["errors"]:
        sys.exit(1)
