"""``nodma serve``: run a device in this process."""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import click

from nodma.cli.options import Size, show_size
from nodma.device.blk import BlockDevice
from nodma.device.image import Image
from nodma.function import PciFunction
from nodma.ring import COMPILED
from nodma.spec.profiles import PROFILES, Policy
from nodma.vfio_user.listener import adopt_listener, make_listener
from nodma.vfio_user.server import Server

log = logging.getLogger(__name__)


@click.group()
def serve() -> None:
    """Serve a device on a socket, to a VMM's vfio-user-pci or to nodma's own driver."""


@serve.command()
@click.option("-s", "--socket-path", type=click.Path(path_type=Path), metavar="PATH", help="Where to listen.")
@click.option("--fd", type=int, metavar="N", help="Listen on this descriptor, a listening UNIX socket.")
@click.option("--image", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The disk image.")
@click.option("--read-only", is_flag=True, help="Refuse writes; the image is opened for reading.")
@click.option(
    "--pool", type=Size(), default="16M", show_default=True, help="The window's size: a power of two from 64K to 4G."
)
@click.option(
    "--profile", type=click.Choice(list(PROFILES)), default="swiotlb", show_default=True, help="Wire profile."
)
@click.option(
    "--policy",
    type=click.Choice([policy.value for policy in Policy]),
    default=Policy.REQUIRED.value,
    show_default=True,
    help="Refuse a driver that does not accept the profile's feature, or accept it and catch what lies outside.",
)
@click.option("--queues", type=int, default=1, show_default=True, metavar="N", help="Request queues.")
@click.option("--serial", default="", metavar="TEXT", help="Up to 20 ASCII characters.")
@click.option("-v", "--verbose", count=True, help="Log what happens; twice: every refused message.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def blk(
    *,
    socket_path: Path | None,
    fd: int | None,
    image: Path,
    read_only: bool,
    pool: int,
    profile: str,
    policy: str,
    queues: int,
    serial: str,
    verbose: int,
    as_json: bool,
) -> None:
    """Serve a virtio block device.

    Prints one line when the socket accepts. SIGTERM and SIGINT end it: requests that were taken are done,
    the image is synced, the socket is removed.
    """
    if (socket_path is None) == (fd is None):
        raise click.UsageError("give either --socket-path PATH or --fd N: where to listen.")
    _set_up_log(verbose)
    with Image(image, read_only=read_only) as disk:
        device = BlockDevice(disk, pool=pool, queues=queues, serial=serial)
        function = PciFunction(device, pool=pool, profile=PROFILES[profile], policy=Policy(policy))
        try:
            listener = make_listener(socket_path) if socket_path else adopt_listener(fd or 0)
        except BaseException:
            function.close()
            raise
        server = Server(function, listener.socket)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        _announce(as_json, image, disk.size, pool, listener.path)
        try:
            server.run()
        finally:
            server.close()
            listener.remove()
            function.close()
        _report(as_json, function, server)


def _set_up_log(verbose: int) -> None:
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(level=level, stream=sys.stderr, format="nodma: %(levelname)s: %(message)s")


def qemu_device(path: str) -> str:
    """Give the argument of QEMU's -device that attaches the socket at ``path``."""
    return json.dumps({"driver": "vfio-user-pci", "socket": {"path": path, "type": "unix"}}, separators=(",", ":"))


def _announce(as_json: bool, image: Path, size: int, pool: int, path: str) -> None:
    """Print the ready line."""
    argument = qemu_device(path)
    if as_json:
        record = {
            "event": "ready",
            "socket": path,
            "image": str(image),
            "size": size,
            "pool": pool,
            "ring": "compiled" if COMPILED else "interpreted",
            "qemu": ["-device", argument],
        }
        click.echo(json.dumps(record))
    else:
        click.echo(f"ready: {image} ({show_size(size)}) on {path}, attach: -device {shlex.quote(argument)}")
    sys.stdout.flush()


def _report(as_json: bool, function: PciFunction, server: Server) -> None:
    """Say, at the end, what happened: the counts of the whole life of the process."""
    record = report(function, server)
    if as_json:
        click.echo(json.dumps({"event": "end"} | record))
    else:
        log.info("served: %s", record)


def report(function: PciFunction, server: Server) -> dict[str, Any]:
    """Count what a device process did."""
    counters = function.core.counters
    return {
        "clients": server.clients,
        "messages": server.messages,
        "requests": counters.requests,
        "notifications": counters.notifications,
        "interrupts": function.interrupts.delivered,
        "needs_reset": counters.needs_reset,
        "features_refused": counters.refused,
        "addresses_outside_window": counters.outside,
        "dma_maps": server.guard.maps,
        "dma_descriptors_closed": server.guard.descriptors_closed,
        "device": function.device.statistics(),
    }
