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
        (tmp_path, "is a directory: it must be a regular file or a block device"),
        (empty, "is empty: set a size"),
        (odd, "has 1000 bytes, expected a multiple of 512: extend it"),
        (fifo, "is a FIFO: it must be a regular file"),
        (Path("/dev/zero"), "is a character device: it must be a regular file"),
    ):
        with pytest.raises(UsageError, match=why):
            Image(path)
    assert count_descriptors() == before
