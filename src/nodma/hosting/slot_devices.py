"""The devices that come with nodma, made from what a command line or a slot's file says of them."""

from __future__ import annotations

from pathlib import Path

from nodma.device.blk import BlockDevice
from nodma.device.image import Cache, Image


def block_device(
    image: Path,
    *,
    pool: int,
    read_only: bool = False,
    queues: int = 1,
    serial: str = "",
    cache: Cache = Cache.WRITEBACK,
) -> BlockDevice:
    """Make a disk whose requests fit ``pool`` bytes. Raises UsageError for what cannot be served."""
    disk = Image(image, read_only=read_only, cache=cache)
    try:
        return BlockDevice(disk, pool=pool, queues=queues, serial=serial)
    except BaseException:
        disk.close()
        raise
