"""The demo, step by step. Each step raises if what it shows does not hold."""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nodma.confinement import examine
from nodma.demo import ext4
from nodma.demo.tree import Tree, digest_tree, make_tree
from nodma.driver import BlockDisk, VfioUserBus
from nodma.errors import NodmaError
from nodma.hosting.process import DeviceProcess
from nodma.procfs import Descriptor, FileIdentity, MappedRange, ProcessView
from nodma.window import Direction, Window

_CHUNK: Final = 4 << 20
_RANDOM_READ: Final = 4096
_DEPTH: Final = 32
_RAM: Final = 32 << 20
_RAM_ADDRESS: Final = 0x1_0000_0000

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how far it is, and where it ends."""


class DemoError(NodmaError):
    """Something that the demo is to show does not hold."""


@dataclass(slots=True)
class Findings:
    """All that the demo found out; sizes in bytes, times in seconds."""

    files: int = 0
    tree_bytes: int = 0
    image_bytes: int = 0
    pool_bytes: int = 0
    startup: float = 0.0
    qemu: list[str] = field(default_factory=list)
    ring: str = ""
    inspected: list[tuple[str, str]] = field(default_factory=list)
    maps: list[MappedRange] = field(default_factory=list)
    descriptors: list[Descriptor] = field(default_factory=list)
    window: FileIdentity | None = None
    ram: FileIdentity | None = None
    ram_bytes: int = _RAM
    resident: int = 0
    searched: int = 0
    unread: int = 0
    unanswered: int = 0
    read_rate: float = 0.0
    write_rate: float = 0.0
    written: int = 0
    files_written: int = 0
    requests_rate: float = 0.0
    pool: dict[str, int] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    fsck: str = ""
    checks: list[str] = field(default_factory=list)


def run_demo(work: Path, *, files: int, pool: int, requests: int, progress: Progress) -> Findings:
    """Run the whole demo in the empty directory ``work``. Raises NodmaError where something does not hold."""
    found = Findings()
    image, socket = work / "disk.img", work / "disk.sock"
    tree = make_tree(work / "tree", files, lambda count: progress("writing a directory tree", count, files))
    found.files, found.tree_bytes = len(tree.digests), tree.bytes
    found.image_bytes = -(-tree.bytes * 3 // 2 // (16 << 20)) * (16 << 20) + (16 << 20)
    progress("making an ext4 image (mke2fs -d)", 0, 1)
    ext4.make_image(image, tree.root, found.image_bytes)
    chosen = tree.rewritable
    blocks = ext4.blocks_of(image, chosen, work)
    progress("making an ext4 image (mke2fs -d)", 1, 1)

    with DeviceProcess(image, socket, "--pool", str(pool), "--serial", "nodma-demo") as process:
        found.startup, found.qemu, found.ring = process.startup, process.ready["qemu"], process.ready["ring"]
        found.pool_bytes = process.ready["pool"]
        ram = _guest_memory()
        bus = VfioUserBus.connect(socket)
        bus.client.dma_map(_RAM_ADDRESS, _RAM, fd=ram[0].fd)  # what QEMU does when guest memory is shared
        with ram[0], BlockDisk(bus) as disk:
            _describe(disk, found)
            _read_all(disk, image, found, progress)
            digests = _write_back(disk, tree, chosen, blocks, found, progress)
            _random_reads(disk, requests, found, progress)
            _examine(process.pid, disk, ram, found, progress)
            found.pool = {name: getattr(disk.statistics, name) for name in disk.statistics.__slots__}
        found.device = process.stop()
    _check_counts(found)
    _check_file_system(image, work / "extracted", digests, found, progress)
    if socket.exists():
        raise DemoError(f"the device process left its socket {socket} behind")
    return found


def _guest_memory() -> tuple[Window, bytes]:
    """Make what stands for a guest's memory: shared, and with a canary in it."""
    memory = Window.create(_RAM)
    canary = secrets.token_bytes(32)
    memory.view(_RAM // 2, len(canary))[:] = canary
    return memory, canary


def _describe(disk: BlockDisk, found: Findings) -> None:
    """Note what the driver found."""
    space, region = disk.device.space, disk.device.region
    bar = space.bar(region.bar)
    assert bar
    found.inspected = [
        (
            "function",
            f"{space.header.vendor_id:04x}:{space.header.device_id:04x}, virtio block, {disk.size >> 20} MiB,"
            f" serial {disk.serial!r}",
        ),
        (
            f"BAR {bar.index}",
            f"{bar.size or 0:#x} bytes at {bar.address:#x}, {'64' if bar.is64 else '32'}-bit"
            f"{' prefetchable' if bar.prefetchable else ''}: the window",
        ),
        ("capability 10", f"SWIOTLB: {region.length:#x} bytes at {region.offset_in_bar:#x} of BAR {region.bar}"),
        ("accepted", ", ".join(disk.feature_names)),
        ("requests", f"up to {disk.max_request >> 10} KiB, in segments of up to {disk.segment >> 10} KiB"),
    ]


def _read_all(disk: BlockDisk, image: Path, found: Findings, progress: Progress) -> None:
    """Read the whole disk, and compare it with the image file."""
    digest, spent = hashlib.sha256(), 0.0
    buffer = bytearray(_CHUNK)
    for offset in range(0, disk.size, _CHUNK):
        part = memoryview(buffer)[: min(_CHUNK, disk.size - offset)]
        begin = time.perf_counter()
        disk.readinto(part, offset)
        spent += time.perf_counter() - begin
        digest.update(part)
        progress("reading the whole disk through the pool", offset + len(part), disk.size)
    with image.open("rb") as file:
        if hashlib.file_digest(file, "sha256").digest() != digest.digest():
            raise DemoError("what was read through the device is not what is in the image")
    found.read_rate = disk.size / spent
    found.checks.append(f"all {disk.size >> 20} MiB read through the device have the image's SHA-256")


def _write_back(
    disk: BlockDisk, tree: Tree, chosen: list[str], blocks: dict[str, list[int]], found: Findings, progress: Progress
) -> dict[str, str]:
    """Overwrite files in place, block by block; return the digest that each file must now have."""
    source = random.Random(20260804)  # noqa: S311 - contents that are the same each time
    digests, spent = dict(tree.digests), 0.0
    for number, path in enumerate(chosen, 1):
        size = (tree.root / path).stat().st_size
        contents = source.randbytes(size)
        digests[path] = hashlib.sha256(contents).hexdigest()
        begin = time.perf_counter()
        for at, length, first in _runs(blocks[path], size):
            disk.pwrite(contents[at : at + length].ljust(-(-length // ext4.BLOCK) * ext4.BLOCK, b"\0"), first)
        spent += time.perf_counter() - begin
        found.written += size
        progress("writing files back through the pool", number, len(chosen))
    disk.flush()
    found.write_rate, found.files_written = found.written / spent, len(chosen)
    for path in chosen[:: max(1, len(chosen) // 50)]:
        size = (tree.root / path).stat().st_size
        read = b"".join(disk.pread(length, first) for _, length, first in _runs(blocks[path], size))
        if hashlib.sha256(read).hexdigest() != digests[path]:
            raise DemoError(f"{path} was written through the device and reads back as something else")
    return digests


def _runs(numbers: list[int], size: int) -> list[tuple[int, int, int]]:
    """Cut a file of ``size`` bytes into runs of adjacent blocks: offset in file, length, offset on disk."""
    runs: list[tuple[int, int, int]] = []
    for index, number in enumerate(numbers):
        at = index * ext4.BLOCK
        length = min(ext4.BLOCK, size - at)
        if runs and runs[-1][2] + at - runs[-1][0] == number * ext4.BLOCK:
            runs[-1] = (runs[-1][0], runs[-1][1] + length, runs[-1][2])
        else:
            runs.append((at, length, number * ext4.BLOCK))
    return runs


def _random_reads(disk: BlockDisk, count: int, found: Findings, progress: Progress) -> None:
    """Read 4 KiB at random places, 32 requests at a time, sleeping until interrupted."""
    source = random.Random(1)  # noqa: S311 - the same order each time
    last = disk.size // _RANDOM_READ
    buffers = [bytearray(_RANDOM_READ) for _ in range(_DEPTH)]
    sent = done = 0
    begin = time.perf_counter()
    while done < count:
        while sent < count and sent - done < _DEPTH:
            disk.submit_read(source.randrange(last) * _RANDOM_READ, buffers[sent % _DEPTH])
            sent += 1
        done += len(disk.wait())
        if not done % 1024:
            progress("reading 4 KiB at random places", done, count)
    found.requests_rate = count / (time.perf_counter() - begin)


def _examine(pid: int, disk: BlockDisk, ram: tuple[Window, bytes], found: Findings, progress: Progress) -> None:
    """Examine the device process from outside: it has the window, and nothing of the driver's memory."""
    progress("searching the device process for guest memory", 0, 1)
    memory, canary = ram
    found.window, found.ram = FileIdentity.of(disk.device.window.fd), FileIdentity.of(memory.fd)
    view = ProcessView(pid)
    found.resident = view.resident() - view.resident_shared()
    marker = secrets.token_bytes(len(canary))
    mapping = disk.pool.map(marker, Direction.TO_DEVICE)
    examination = examine(pid, window=found.window, memory=[found.ram], needles=[marker, canary])
    disk.pool.unmap(mapping)
    found.maps, found.descriptors = examination.maps, examination.descriptors
    found.searched, found.unread = examination.searched, examination.unread_bytes
    found.unanswered = len(examination.unanswered)
    if examination.findings:
        raise DemoError(f"the device process holds more than its window: {'; '.join(examination.findings)}")
    if not any(mapped.file == found.window for mapped in found.maps):
        raise DemoError("the device process does not map the window that its driver has")
    if marker not in examination.found:
        raise DemoError("the search of the device process does not even find what is in the window")
    if canary in examination.found:
        raise DemoError("the device process has the canary of the driver's memory in its address space")
    found.checks.append("the device process maps the window, and no other memory that it could share")
    found.checks.append(
        f"the {_RAM >> 20} MiB offered by DMA_MAP: descriptor closed, not mapped, its canary not found in a search"
        " that does find what is in the window"
    )
    progress("searching the device process for guest memory", 1, 1)


def _check_counts(found: Findings) -> None:
    """Hold the device's own account against what was done to it."""
    device = found.device
    if device["dma_descriptors_closed"] != 1:
        raise DemoError(f"the device counts {device['dma_descriptors_closed']} descriptors of guest memory, not 1")
    if device["addresses_outside_window"] or device["needs_reset"] or device["device"]["errors"]:
        raise DemoError(f"the device met errors: {device}")
    found.checks.append(f"{device['requests']} requests, every address inside the window")


def _check_file_system(
    image: Path, extracted: Path, digests: dict[str, str], found: Findings, progress: Progress
) -> None:
    """Have e2fsck judge the image, and compare every file in it."""
    progress("checking the file system (e2fsck -f -n)", 0, 2)
    found.fsck = ext4.check_image(image)
    progress("checking the file system (e2fsck -f -n)", 1, 2)
    ext4.extract(image, extracted)
    have = digest_tree(extracted)
    if have != digests:
        wrong = sorted(path for path in digests.keys() | have.keys() if digests.get(path) != have.get(path))
        raise DemoError(f"{len(wrong)} files are not what they should be, including {wrong[0]}")
    progress("checking the file system (e2fsck -f -n)", 2, 2)
    found.checks.append("e2fsck -f -n finds the file system clean")
    found.checks.append(
        f"{len(digests)} files extracted from the image have the right SHA-256,"
        f" {found.files_written} of them written through the device"
    )
