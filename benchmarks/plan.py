"""What a run of the benchmarks is to do, and what a part of it gives back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from rich.table import Table

from benchmarks.figures import Spread

IMAGE_BYTES: Final = 256 << 20
"""More than the caches of a CPU hold, and less than memory: reads come from the page cache."""
SHARED_MEMORY: Final = Path("/dev/shm")

Tick = Callable[[str], None]
"""Called when a step is about to be done, with what it is."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where an image lies: ``name`` is the file system's, as in ext4."""

    name: str
    image: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: ``rounds`` of interleaved runs of so many seconds. ``work`` takes sockets and logs."""

    rounds: int
    seconds: float
    quick: bool
    match: str
    disk: Store
    tmpfs: Store
    work: Path


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target, what was measured against it, and whether that meets it."""

    text: str
    measured: Spread
    bound: float
    at_most: bool = False
    form: str = ".2f"

    @property
    def met(self) -> bool:
        """Whether the median does."""
        return self.measured.middle <= self.bound if self.at_most else self.measured.middle >= self.bound


@dataclass(slots=True)
class Outcome:
    """What a part gives back: what is kept as JSON, tables with notes for people, and verdicts."""

    record: Any
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)


def file_system(directory: Path) -> str:
    """Return the type of the file system that a directory is on, as /proc/self/mountinfo has it."""
    best, name = -1, "unknown"
    path = directory.resolve()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, source = line.partition(" - ")
        mount = Path(fields.split()[4].replace("\\040", " "))
        if path.is_relative_to(mount) and len(mount.parts) >= best:
            best, name = len(mount.parts), source.split()[0]
    return name


@contextmanager
def stores(disk: Path) -> Iterator[tuple[Store, Store, Path]]:
    """Make an image on a disk and one in memory, and a directory for sockets; removed at the end."""
    with (
        TemporaryDirectory(prefix="nodma-bench-", dir=disk) as on_disk,
        TemporaryDirectory(prefix="nodma-bench-", dir=SHARED_MEMORY) as in_memory,
    ):
        made = []
        for place in (Path(on_disk), Path(in_memory)):
            image = place / "disk.img"
            with image.open("wb") as file:
                for _ in range(IMAGE_BYTES >> 20):
                    file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
            made.append(Store(file_system(place), image))
        yield made[0], made[1], Path(in_memory)
