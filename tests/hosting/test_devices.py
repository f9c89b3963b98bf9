"""Devices that come with nodma: their options are the same on the command line and in slot files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodma.device.blk import BlockDevice
from nodma.errors import Unavailable, UsageError
from nodma.hosting.devices import BLK, KINDS, option_words

ALL = {
    "image": "a.img", "read-only": True, "cache": "none", "queues": 4, "block-size": 4096, "serial": "me", "raw": True,
    "no-lock": True,
}  # fmt: skip


def test_options_have_the_types_that_a_device_takes() -> None:
    assert BLK.read(ALL) == {
        "image": Path("a.img"), "read_only": True, "cache": "none", "queues": 4, "block_size": "4096", "serial": "me",
        "raw": True, "no_lock": True,
    }  # fmt: skip
    assert BLK.read({"image": "a.img", "raw": False})["raw"] is False
    assert set(ALL) == set(BLK.keys)
    assert KINDS == {"blk": BLK}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "no image: a blk device needs one"),
        ({"image": "a", "queues": 257}, "257 is not in the range 1<=x<=256"),
        ({"image": "a", "block-size": 1024}, "'1024' is not one of '512', '4096'"),
        ({"image": "a", "cache": "some"}, "'some' is not one of 'writeback', 'writethrough', 'none'"),
        ({"image": "a", "help": True}, "No such option '?--help'?"),
        ({"image": "a", "size": 3}, "No such option '?--size'?"),
    ],
)
def test_a_value_that_is_wrong_is_said(values: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        BLK.read(values)


def test_a_disk_is_made_of_its_options(image: Path) -> None:
    disk = BLK.make(pool=1 << 20, **BLK.read({"image": str(image), "block-size": 4096, "queues": 2, "serial": "me"}))
    assert isinstance(disk, BlockDevice)
    assert (disk.config.blk_size, disk.config.num_queues) == (4096, 2)
    with pytest.raises(Unavailable, match="in use"):  # locked, until it is closed
        BLK.make(pool=1 << 20, **BLK.read({"image": str(image)}))
    disk.close()
    BLK.make(pool=1 << 20, **BLK.read({"image": str(image)})).close()


def test_what_cannot_be_a_disk_leaves_its_image_alone(image: Path) -> None:
    with pytest.raises(UsageError, match="serial"):
        BLK.make(pool=1 << 20, image=image, serial="x" * 21)
    BLK.make(pool=1 << 20, image=image).close()


def test_keys_become_the_words_of_a_command_line() -> None:
    values = {"a": True, "b": False, "c": "", "d": "-x", "e": 3, "f": 0.5}
    assert option_words(values) == ["--a", "--c=", "--d=-x", "--e=3", "--f=0.5"]
