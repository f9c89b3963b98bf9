"""Disk images: what can be opened, and what is said of what cannot."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nodma.device.image import Image
from nodma.errors import UsageError


def test_images_that_cannot_be_served_are_refused(tmp_path: Path, count_descriptors: Callable[[], int]) -> None:
    before = count_descriptors()
    odd = tmp_path / "odd"
    odd.write_bytes(bytes(1000))
    empty = tmp_path / "empty"
    empty.touch()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, why in (
        (tmp_path / "missing", "does not exist: create one"),
        (tmp_path, "cannot be opened: Is a directory"),
        (empty, "is empty: give it a size"),
        (odd, "has 1000 bytes, no multiple of 512: extend it"),
        (fifo, "neither a file nor a block device"),
    ):
        with pytest.raises(UsageError, match=why):
            Image(path)
    assert count_descriptors() == before


def test_a_transfer_of_more_parts_than_one_call_takes_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(1 << 20))
    with Image(path) as image:
        buffer = memoryview(bytearray(512 * 1500))
        views = [buffer[512 * n : 512 * (n + 1)] for n in range(1500)]
        assert image.read(views, 512, len(buffer))
        assert buffer == path.read_bytes()[512 : 512 + len(buffer)]
        assert image.write(views, 0, len(buffer))
        assert path.read_bytes()[: len(buffer)] == buffer
        assert not image.read(views, (1 << 20) - 512, len(buffer))
