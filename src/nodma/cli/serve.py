"""``nodma serve``: serve a device that comes with nodma from this process."""

from __future__ import annotations

from typing import Any, Final

import click

from nodma.hosting.devices import BLK
from nodma.hosting.options import HostOptions, add_options, host_options
from nodma.hosting.program import serve_device

_SLOT: Final = "slot"


class _Serve(click.Group):
    """Takes `--slot` and the name of a TOML file for the command `slot`, which is loaded when it is asked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] == "--slot":
            args = ["slot", *args[1:]]
        elif args and args[0].endswith(".toml"):
            args = ["slot", "--config", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), _SLOT]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == _SLOT:
            from nodma.cli.serve_slot import serve_slot

            return serve_slot
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Serve)
def serve() -> None:
    """Serve a device on a socket, to a VMM's vfio-user-pci or to nodma's own driver.

    `nodma serve --slot FUNCTION...` and `nodma serve FILE.toml` serve the functions of one slot.
    """


@host_options
def blk(*, options: HostOptions, **arguments: Any) -> None:
    """Serve a virtio block device.

    Prints one line when the socket accepts. SIGTERM, SIGINT and SIGHUP end it: requests that were taken are finished,
    the image is synced, the socket is removed. SIGUSR1 has it look at the image's size again.
    """
    serve_device(lambda options: BLK.make(pool=options.share_of_pool, **arguments), options)


serve.add_command(click.command(BLK.name)(add_options(blk, BLK.options)))
