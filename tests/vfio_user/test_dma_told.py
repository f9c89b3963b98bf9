"""Of which of the client's memory the device is told: that which comes without a descriptor, and may be a BAR."""

from __future__ import annotations

import os
from typing import Any

import pytest

from nodma.errors import Refused
from nodma.vfio_user import Client

SIZE = 1 << 20


@pytest.fixture
def told(served: Any) -> list[tuple[str, int, int]]:
    """What the function behind the server is told of."""
    events: list[tuple[str, int, int]] = []
    served.function.dma_mapped = lambda address, size: events.append(("mapped", address, size))
    served.function.dma_unmapped = lambda regions: events.extend(("unmapped", *region) for region in regions.items())
    return events


def test_memory_without_a_descriptor_is_told_of(served: Any, told: list[tuple[str, int, int]]) -> None:
    with Client.connect(served.path) as client:
        client.dma_map(0x1000_0000, SIZE)
        client.dma_unmap(0x1000_0000, SIZE)
    assert told == [("mapped", 0x1000_0000, SIZE), ("unmapped", 0x1000_0000, SIZE)]


def test_the_guests_memory_is_not(served: Any, told: list[tuple[str, int, int]], count_descriptors: Any) -> None:
    fd = os.memfd_create("guest")
    with Client.connect(served.path) as client:
        client.dma_map(0, SIZE, fd=fd)
    os.close(fd)
    assert told == []


def test_what_is_refused_is_not(served: Any, told: list[tuple[str, int, int]]) -> None:
    with Client.connect(served.path) as client:
        client.dma_map(SIZE, SIZE)
        for address, size in ((SIZE, SIZE), (SIZE + 4096, 4096), (2**64 - 4096, 8192), (0, 0)):
            with pytest.raises(Refused):
                client.dma_map(address, size)
        with pytest.raises(Refused):
            client.dma_unmap(SIZE, 4096)
    assert told == [("mapped", SIZE, SIZE)]
