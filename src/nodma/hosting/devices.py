"""The kinds of devices that come with nodma.

A kind says which options it has and how a device is made of them, once: the command line, the functions of a slot and
slot files all read it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from nodma.device.base import Device
from nodma.device.blk import BLOCK_SIZES, MAX_QUEUES, BlockDevice
from nodma.device.image import Cache, Image
from nodma.errors import UsageError
from nodma.hosting.options import Decorator, FilePath, add_options
from nodma.spec.virtio_blk import SECTOR

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """A kind of device. ``make`` gets ``pool``, the bytes of window that a device may count on, and the options."""

    name: str
    options: tuple[Decorator, ...]
    make: Callable[..., Device]

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the options, as in a slot file: without dashes in front."""
        return tuple(option.opts[0].removeprefix("--") for option in self._command().params)

    def read(self, values: Mapping[str, Scalar]) -> dict[str, Any]:
        """Check options as a slot file has them; return the arguments for ``make``. Raises UsageError."""
        try:
            with self._command().make_context(self.name, option_words(values)) as context:
                return context.params
        except click.MissingParameter as error:
            name = error.param.name if error.param else None
            raise UsageError(f"no {name}: a {self.name} device needs one") from None
        except click.ClickException as error:
            raise UsageError(error.format_message()) from None

    def _command(self) -> click.Command:
        command: click.Command = add_options(click.Command(self.name, add_help_option=False), self.options)
        return command


def option_words(values: Mapping[str, Scalar]) -> list[str]:
    """Return the words of a command line that say the same as the keys of a slot file."""
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in values.items() if value is not False]


def _make_disk(
    *,
    pool: int,
    image: Path,
    read_only: bool = False,
    raw: bool = False,
    no_lock: bool = False,
    queues: int = 1,
    serial: str | None = None,
    block_size: str | None = None,
    cache: str = Cache.WRITEBACK.value,
) -> BlockDevice:
    """Make a disk whose requests fit ``pool`` bytes. Raises UsageError if it cannot be served."""
    disk = Image(image, read_only=read_only, cache=Cache(cache), raw=raw, lock=not no_lock)
    try:
        size = SECTOR if block_size is None else int(block_size)
        return BlockDevice(disk, pool=pool, queues=queues, serial=serial, block_size=size)
    except BaseException:
        disk.close()
        raise


BLK: Final = DeviceKind(
    "blk",
    (
        click.option("--image", type=FilePath(), required=True, metavar="FILE", help="The disk image."),
        click.option("--read-only", is_flag=True, help="Refuse writes, and open the image read-only."),
        click.option(
            "--cache",
            type=click.Choice([mode.value for mode in Cache]),
            default=Cache.WRITEBACK.value,
            show_default=True,
            help="The host's page cache, with flushes; the same, each write durable at once; or none (O_DIRECT).",
        ),
        click.option(
            "--queues",
            type=click.IntRange(1, MAX_QUEUES),
            default=1,
            show_default=True,
            metavar="N",
            help="Request queues.",
        ),
        click.option(
            "--block-size",
            type=click.Choice([str(size) for size in BLOCK_SIZES]),
            default=str(SECTOR),
            show_default=True,
            help="Bytes of a logical block, the smallest unit that a driver reads or writes.",
        ),
        click.option(
            "--serial",
            metavar="TEXT",
            help="Up to 20 ASCII characters.  [default: one that stays the same for an image]",
        ),
        click.option("--raw", is_flag=True, help="Serve the image byte for byte even if it looks like another format."),
        click.option("--no-lock", is_flag=True, help="Do not lock the image against QEMU and other device processes."),
    ),
    _make_disk,
)

KINDS: Final = {kind.name: kind for kind in (BLK,)}
