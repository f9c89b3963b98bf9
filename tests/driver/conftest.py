"""A slot of disks that share a pool: owner and sharers, each served by a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nodma.pci_function import PoolKeeper, SharedPoolConfig

POOL = 1 << 20


class SlotOfDisks:
    """Functions 0 (the owner) to ``sharers``, in one pool; images of 1 MiB, no sector like another."""

    def __init__(self, make_served: Callable[..., Any], tmp_path: Path, sharers: int, pool: int) -> None:
        self.keeper = PoolKeeper(pool)
        self.served = []
        self.images = []
        for number in range(sharers + 1):
            image = tmp_path / f"disk{number}.img"
            sector = b"".join((number << 24 | at).to_bytes(4, "little") * 128 for at in range(2048))
            image.write_bytes(sector)
            share = SharedPoolConfig(self.keeper, None if number == 0 else 0)
            self.images.append(image)
            self.served.append(make_served(share=share, pool=pool, image=image, path=tmp_path / f"disk{number}.sock"))
        self.functions = [served.function for served in self.served]
        self.sockets = [served.path for served in self.served]

    def __enter__(self) -> SlotOfDisks:
        with ExitStack() as stack:
            for served in self.served:
                stack.enter_context(served.running())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.keeper.close()


@pytest.fixture
def make_slot(make_served: Callable[..., Any], tmp_path: Path) -> Callable[..., SlotOfDisks]:
    """Make a slot whose servers are not running yet."""

    def make(sharers: int = 1, pool: int = POOL) -> SlotOfDisks:
        return SlotOfDisks(make_served, tmp_path, sharers, pool)

    return make


@pytest.fixture
def slot_of_disks(make_slot: Callable[..., SlotOfDisks]) -> Iterator[SlotOfDisks]:
    with make_slot() as slot:
        yield slot
