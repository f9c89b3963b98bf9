"""``nodma serve``: run a device that comes with nodma in this process."""

from __future__ import annotations

from pathlib import Path

import click

from nodma.device.blk import BlockDevice
from nodma.device.image import Cache, Image
from nodma.host import HostOptions, host, host_options


@click.group()
def serve() -> None:
    """Serve a device on a socket, to a VMM's vfio-user-pci or to nodma's own driver."""


@serve.command()
@click.option("--image", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The disk image.")
@click.option("--read-only", is_flag=True, help="Refuse writes; the image is opened for reading.")
@click.option(
    "--cache",
    type=click.Choice([mode.value for mode in Cache]),
    default=Cache.WRITEBACK.value,
    show_default=True,
    help="The host's page cache, with flushes; the same, each write durable at once; or none (O_DIRECT).",
)
@click.option("--queues", type=int, default=1, show_default=True, metavar="N", help="Request queues.")
@click.option("--serial", default="", metavar="TEXT", help="Up to 20 ASCII characters.")
@host_options
def blk(*, options: HostOptions, image: Path, read_only: bool, cache: str, queues: int, serial: str) -> None:
    """Serve a virtio block device.

    Prints one line when the socket accepts. SIGTERM and SIGINT end it: requests that were taken are done,
    the image is synced, the socket is removed.
    """

    def device(options: HostOptions) -> BlockDevice:
        disk = Image(image, read_only=read_only, cache=Cache(cache))
        try:
            return BlockDevice(disk, pool=options.pool, queues=queues, serial=serial)
        except BaseException:
            disk.close()
            raise

    host(device, options)
