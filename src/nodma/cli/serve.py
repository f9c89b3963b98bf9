"""``nodma serve``: run a device that comes with nodma in this process."""

from __future__ import annotations

from pathlib import Path

import click

from nodma.cli.serve_slot import serve_slot
from nodma.device.image import Cache
from nodma.hosting.host import HostOptions, host, host_options
from nodma.hosting.slot_devices import block_device


class _Serve(click.Group):
    """Takes `--slot` and the name of a TOML file for the command `slot`, which they mean."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] == "--slot":
            args = ["slot", *args[1:]]
        elif args and args[0].endswith(".toml"):
            args = ["slot", "--config", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Serve)
def serve() -> None:
    """Serve a device on a socket, to a VMM's vfio-user-pci or to nodma's own driver.

    `nodma serve --slot FUNCTION...` and `nodma serve FILE.toml` serve the functions of one slot.
    """


serve.add_command(serve_slot)


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

    host(
        lambda options: block_device(
            image,
            pool=options.share_of_pool,
            read_only=read_only,
            queues=queues,
            serial=serial,
            cache=Cache(cache),
        ),
        options,
    )
