"""The ring alone, polled, in one process: the device's end, the block device and preadv, on one core.

The front end replays: its chains lie ready in the window, and publishing a lap of them is one store. So
what is measured is what the device does for a request, and nothing of what a driver would do.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from nodma.device import BlockDevice, Queue
from nodma.device.image import Image
from nodma.pci_function import PciFunction
from nodma.ring import COMPILED, RingLayout
from nodma.spec.pci import Command, Type0Header
from nodma.spec.vfio_user import Region
from nodma.spec.virtio import DescFlag, Descriptor, Feature, Status
from nodma.spec.virtio_blk import BlkRequest, BlkType
from nodma.spec.virtio_pci import CommonCfg

BASE = 0x10_0000_0000
POOL = 256 << 20
DATA_AT = 16 << 20
DATA_BYTES = 16 << 20
PARTS = 3
CELL = 128


class Replay:
    """A function whose queue holds ``depth`` reads of ``size`` bytes, ready to be made available again."""

    def __init__(self, image: Path, depth: int, size: int, *, indirect: bool = False) -> None:
        device = BlockDevice(Image(image), pool=POOL)
        entries = 4 * depth
        device.queues = (Queue("requests0", entries, "requests"),)
        self.function = PciFunction(device, pool=POOL)
        self.depth = depth
        self._ready(entries)
        window = self.function.window
        source = random.Random(7)
        sectors = (image.stat().st_size - size) // 512 // 8
        for number in range(depth):
            cell = self.layout.end + CELL + number * CELL
            cell -= cell % 16
            data = DATA_AT + (number * size) % DATA_BYTES
            BlkRequest.codec.pack_into(window.bytes, cell, BlkType.IN, 0, source.randrange(max(1, sectors)) * 8)
            parts = ((cell, 16, 0), (data, size, DescFlag.WRITE), (cell + 16, 1, DescFlag.WRITE))
            table, first = (cell + 32, 0) if indirect else (self.layout.desc, PARTS * number)
            for index, (offset, length, flags) in enumerate(parts, first):
                more = DescFlag.NEXT if index + 1 < first + PARTS else 0
                Descriptor.codec.pack_into(
                    window.bytes, table + 16 * index, BASE + offset, length, flags | more, index + 1 if more else 0
                )
            if indirect:
                Descriptor.codec.pack_into(
                    window.bytes, self.layout.desc + 16 * number, BASE + table, 16 * PARTS, DescFlag.INDIRECT, 0
                )
        self.avail = window.words("H", self.layout.avail, 3 + self.layout.size)
        self.used = window.words("H", self.layout.used, 2)
        for slot in range(self.layout.size):
            self.avail[2 + slot] = slot % depth * (1 if indirect else PARTS)
        self.avail[2 + self.layout.size] = 0x8000  # an interrupt once in a blue moon
        self._published = 0

    def _ready(self, entries: int) -> None:
        """Do what a driver does until DRIVER_OK."""
        function = self.function
        function.write(Region.CONFIG, Type0Header.bar2.offset, BASE.to_bytes(8, "little"))
        function.write(Region.CONFIG, Type0Header.command.offset, int(Command.MEMORY).to_bytes(2, "little"))

        def put(field: object, value: int) -> None:
            function.write(0, field.offset, int(value).to_bytes(field.size, "little"))  # type: ignore[attr-defined]

        features = Feature.VERSION_1.mask | Feature.SWIOTLB.mask | Feature.EVENT_IDX.mask | Feature.INDIRECT_DESC.mask
        for word in (0, 1):
            put(CommonCfg.driver_feature_select, word)
            put(CommonCfg.driver_feature, features >> 32 * word & 0xFFFFFFFF)
        put(CommonCfg.device_status, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        self.layout = RingLayout.packed_at(0, entries)
        put(CommonCfg.queue_size, entries)
        put(CommonCfg.queue_desc, BASE + self.layout.desc)
        put(CommonCfg.queue_driver, BASE + self.layout.avail)
        put(CommonCfg.queue_device, BASE + self.layout.used)
        put(CommonCfg.queue_enable, 1)
        put(CommonCfg.device_status, 15)

    def lap(self) -> None:
        """Make every request available, and have the device do them all."""
        self._published = (self._published + self.depth) & 0xFFFF
        self.avail[1] = self._published
        core = self.function.core
        core.notify(0)
        while self.used[1] != self._published:
            if not core.service() and core.reason:
                raise RuntimeError(f"the device refused the benchmark's requests: {core.reason}")

    def check(self) -> None:
        """Raise if the device did anything but the requests."""
        core = self.function.core
        if core.reason or core.device.statistics()["errors"]:
            raise RuntimeError(f"the benchmark's requests failed: {core.reason} {core.device.statistics()}")


def measure(image: Path, depth: int, size: int, seconds: float, *, indirect: bool = False) -> dict[str, float | str]:
    """Run laps for so many seconds; gives requests a second, CPU microseconds a request."""
    replay = Replay(image, depth, size, indirect=indirect)
    replay.lap()
    laps = max(1, int((256 << 20) / (size * depth)) // 8) if size > 65536 else max(1, 512 // depth)
    done, begin, cpu = 0, time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - begin) < seconds:
        for _ in range(laps):
            replay.lap()
        done += laps * depth
    cpu = time.process_time() - cpu
    replay.check()
    return {"ring": "compiled" if COMPILED else "interpreted", "rate": done / spent, "cpu_us": cpu / done * 1e6}
