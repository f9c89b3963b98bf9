"""The front end: what drives a device, whoever serves it. Control is here, the ring itself in native/front.c."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from benchmarks import native
from benchmarks.figures import Measured, percentile
from nodma.errors import NodmaError
from nodma.ring import RingLayout
from nodma.spec.virtio import Descriptor
from nodma.spec.virtio_blk import SECTOR, BlkConfig, BlkFeature, BlkRequest
from nodma.window import Window

ENTRIES: Final = 256
"""Of each queue."""
SEGMENT: Final = 128 << 10
"""Bytes of one part of a request at most."""
WANTED: Final = BlkFeature.FLUSH.mask | BlkFeature.SIZE_MAX.mask | BlkFeature.SEG_MAX.mask | BlkFeature.MQ.mask
PAGE: Final = 4096
CACHE_LINE: Final = 64

_SEED: Final = 7
_TABLE_AT: Final = 32
_BESIDE_DATA: Final = 2
_SLACK_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked of a device: ``depth`` requests of ``bytes`` in flight in each of ``queues`` queues."""

    bytes: int = PAGE
    depth: int = 32
    write: bool = False
    polled: bool = False
    queues: int = 1


@dataclass(frozen=True, slots=True)
class Places:
    """Where a queue lies in a window: its ring, its cells (header, status, indirect table), its data buffers."""

    ring: RingLayout
    cells: int
    data: int


@dataclass(frozen=True, slots=True)
class Doorbell:
    """A notification is: write ``message`` to ``fd``."""

    fd: int
    message: bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """What a disk takes: ``capacity`` in bytes, and the bytes of one part of a request."""

    capacity: int
    segment: int

    @classmethod
    def of(cls, config: BlkConfig, features: int, queues: int) -> Self:
        """Read them. Raises NodmaError if the disk has fewer queues than are wanted."""
        have = config.num_queues if features & BlkFeature.MQ.mask else 1
        if have < queues:
            raise NodmaError(f"the disk has {have} queues, not {queues}")
        size_max = config.size_max if features & BlkFeature.SIZE_MAX.mask else SEGMENT
        return cls(config.capacity * SECTOR, min(SEGMENT, size_max))


def cell_bytes(work: Work, segment: int) -> int:
    """Bytes of a cell: header and status, then the indirect table, in whole cache lines."""
    parts = -(-work.bytes // segment) + _BESIDE_DATA
    return -(-(_TABLE_AT + parts * Descriptor.size) // CACHE_LINE) * CACHE_LINE


class FrontEnd:
    """A disk that was attached: its window, its queues, the eventfd of its interrupts, which are the caller's."""

    def __init__(
        self,
        work: Work,
        window: Window,
        base: int,
        limits: Limits,
        queues: Sequence[tuple[Places, Doorbell]],
        call_fd: int,
    ) -> None:
        self.work = work
        self._memory = native.address_of(window.bytes)
        self._load = native.Load(
            blocks=limits.capacity // work.bytes,
            seed=_SEED,
            bytes=work.bytes,
            segment=limits.segment,
            write=work.write,
            polled=work.polled,
            call_fd=call_fd,
        )
        self._queues = (native.Queue * len(queues))(
            *(self._queue(places, bell, base, limits.segment) for places, bell in queues)
        )

    def _queue(self, places: Places, bell: Doorbell, base: int, segment: int) -> native.Queue:
        return native.Queue(
            base=base,
            desc=places.ring.desc,
            avail=places.ring.avail,
            used=places.ring.used,
            cells=places.cells,
            data=places.data,
            cell_bytes=cell_bytes(self.work, segment),
            entries=places.ring.size,
            depth=self.work.depth,
            kick_fd=bell.fd,
            kick_bytes=len(bell.message),
            kick=(ctypes.c_uint8 * native.MAX_KICK)(*bell.message),
        )

    def run(self, seconds: float) -> Measured:
        """Keep the queues full for so many seconds. Raises NodmaError if a request fails, or none comes back."""
        result = native.Result()
        self._load.nanoseconds = int(seconds * 1e9)
        status: list[int] = []

        def work() -> None:
            arguments = (self._memory, self._queues, len(self._queues), ctypes.byref(self._load), ctypes.byref(result))
            status.append(native.library().front_run(*arguments))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(seconds + _SLACK_SECONDS)
        if thread.is_alive():
            self._load.stop = 1
            thread.join()
            raise NodmaError(f"requests did not come back within {_SLACK_SECONDS:g} s")
        native.check(status[0], "the front end failed")
        if result.failed:
            raise NodmaError(f"{result.failed} of the benchmark's requests failed")
        return measured(result)

    def run_bare(self, image: int, seconds: float) -> Measured:
        """Do by system calls alone, on the open file ``image`` and the same buffers, what the device would do."""
        result = native.Result()
        self._load.nanoseconds = int(seconds * 1e9)
        arguments = (self._memory, ctypes.byref(self._queues[0]), image, ctypes.byref(self._load), ctypes.byref(result))
        native.check(native.library().bare_run(*arguments), "the bare system calls failed")
        return measured(result)

    def close(self) -> None:
        """Forget the window. What a subclass attached, it lets go of before."""
        del self._memory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def measured(result: native.Result) -> Measured:
    """Return the figures of a run."""
    seconds = result.nanoseconds / 1e9
    done = max(1, result.done)
    latencies = list(result.latencies)
    return Measured(
        rate=result.done / seconds,
        done=result.done,
        p50_us=percentile(latencies, 0.50) / 1e3,
        p99_us=percentile(latencies, 0.99) / 1e3,
        front_cpu_us=result.cpu / done / 1e3,
        kicks=result.kicks / done,
        sleeps=result.sleeps / done,
    )


assert BlkRequest.size + 1 <= _TABLE_AT
