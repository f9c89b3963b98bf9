"""Drivers that vanish with requests in flight: the next one finds a disk that works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nodma.driver import open_disk


def test_a_driver_that_vanishes_with_requests_in_flight(served: Any, image: Path) -> None:
    before = image.read_bytes()
    for _ in range(10):
        disk = open_disk(served.path)
        for sector in range(20):
            disk.submit_write(512 * sector, b"w" * 512)
            disk.submit_read(512 * sector, bytearray(512))
        disk.kick()
        disk.device.bus.client.close()  # type: ignore[attr-defined]
        disk.close()
    with open_disk(served.path) as disk:
        assert disk.pread(512, 512 * 100) == before[512 * 100 : 512 * 101]
        assert disk.pread(1 << 20, 0)[512 * 20 :] == before[512 * 20 :]
    assert served.function.core.counters.needs_reset == 0
