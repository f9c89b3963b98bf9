"""The path of a disk's requests: both builds do the same with any ring; what would wait is left to helpers."""

from __future__ import annotations

import importlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.builds import is_compiled, load_interpreted
from nodma.device import BlockDevice
from nodma.device.image import Image
from nodma.ring import FAULT, IDLE, DriverRing, RingLayout
from nodma.spec.virtio import DescFlag, Descriptor
from nodma.spec.virtio_blk import BlkRange, BlkRequest, BlkStatus, BlkType
from nodma.window import Window

N = 16
LAYOUT = RingLayout.packed_at(0, N)
SIZE = 0x8000
CELL = 0x1000
DATA = 0x2000
TABLE = 0x3000
PAGE = 4096
DISK = 64 * PAGE

numbers = st.integers(0, 2**64 - 1) | st.integers(0, SIZE)
flags = st.sampled_from([0, DescFlag.NEXT, DescFlag.WRITE, DescFlag.NEXT | DescFlag.WRITE, DescFlag.INDIRECT, 0xFFFF])
descriptors = st.tuples(
    st.sampled_from([CELL, CELL + 8, CELL + 32, DATA, DATA + PAGE, TABLE, SIZE - 1]) | numbers,
    st.sampled_from([0, 1, 16, 15, 17, 512, 513, PAGE]) | st.integers(0, 2**32 - 1),
    flags,
    st.integers(0, N),
)
kinds = st.sampled_from([*BlkType, 99])
headers = st.tuples(kinds, st.integers(0, DISK // 512 + 1) | st.integers(0, 2**64 - 1))


def served(build: Callable[[str], ModuleType], memory: bytes, path: Path, *, read_only: bool) -> list[Any]:
    """Serve a ring as it lies in ``memory``; what is then in the window, in the image, and counted."""
    path.write_bytes(bytes(range(256)) * (DISK // 256))
    device = BlockDevice(Image(path, read_only=read_only), pool=1 << 20, serial="same")
    with Window.create(SIZE) as window, pytest.MonkeyPatch.context() as patch:
        patch.setattr("nodma.device.blk.BlockEngine", build("nodma.device.blk_engine").BlockEngine)
        window.bytes[: len(memory)] = memory
        ring = build("nodma.ring.device_end").DeviceRing(
            window, LAYOUT, base=0, first=0, limit=SIZE, indirect=True, event_idx=True
        )
        block = device.make_engine(device.queues[0], ring)
        device.start(device.features)
        state = block.serve(4)
        why = str(block.explain()) if state == FAULT else ""
        block.close()
        found = [state, why, block.requests, bytes(window.bytes), path.read_bytes(), device.statistics()]
        del ring, block
    device.close()
    return found


@given(
    table=st.lists(descriptors, min_size=N, max_size=N),
    inner=st.lists(descriptors, min_size=8, max_size=8),
    cells=st.lists(headers, min_size=2, max_size=2),
    heads=st.lists(st.integers(0, N), min_size=N, max_size=N),
    ahead=st.integers(0, N + 1),
    read_only=st.booleans(),
)
def test_both_builds_do_the_same_with_any_ring(
    tmp_path_factory: pytest.TempPathFactory,
    table: list[Any],
    inner: list[Any],
    cells: list[tuple[int, int]],
    heads: list[int],
    ahead: int,
    read_only: bool,
) -> None:
    built = importlib.import_module("nodma.device.blk_engine")
    if not is_compiled(built):
        pytest.skip("the path was not compiled here: there is no C compiler")
    memory = bytearray(SIZE)
    for index, (addr, length, flag, following) in enumerate(table):
        Descriptor.codec.pack_into(memory, 16 * index, addr, length, flag, following)
    for index, (addr, length, flag, following) in enumerate(inner):
        Descriptor.codec.pack_into(memory, TABLE + 16 * index, addr, length, flag, following)
    for index, (kind, sector) in enumerate(cells):
        BlkRequest.codec.pack_into(memory, CELL + 32 * index, kind, 0, sector)
    BlkRange.codec.pack_into(memory, DATA, 8, 8, 0)
    struct.pack_into(f"<HH{N}HH", memory, LAYOUT.avail, 0, ahead, *heads, 0)
    path = tmp_path_factory.getbasetemp() / "same.img"
    oracle = served(load_interpreted, bytes(memory), path, read_only=read_only)
    assert served(importlib.import_module, bytes(memory), path, read_only=read_only) == oracle


class Helped:
    """A path with helpers, driven by hand: this thread is the queue's."""

    def __init__(self, build: Callable[[str], ModuleType], image: Path, helpers: int) -> None:
        self.device = BlockDevice(Image(image), pool=1 << 20, serial="helped")
        self.window = Window.create(SIZE * 4)
        ring = build("nodma.ring.device_end").DeviceRing(
            self.window, LAYOUT, base=0, first=0, limit=self.window.size, indirect=True, event_idx=True
        )
        self.driver = DriverRing(self.window, LAYOUT, base=0, event_idx=True)
        self.engine = self.device.make_engine(self.device.queues[0], ring)
        self.device.start(self.device.features)
        self.engine.start_helpers()
        work = build("nodma.ring.thread_main").helper_main
        self.threads = [threading.Thread(target=work, args=(self.engine,)) for _ in range(helpers)]
        for thread in self.threads:
            thread.start()

    def offer(self, number: int, kind: int, sector: int, length: int, data: bytes = b"") -> None:
        """Put a request into the ring; its data lie at a place of its own."""
        cell, at = CELL + 32 * number, DATA + PAGE * number
        BlkRequest.codec.pack_into(self.window.bytes, cell, kind, 0, sector)
        self.window.bytes[at : at + len(data)] = data
        parts = [(at, length)] if length else []
        out = kind not in (BlkType.IN, BlkType.GET_ID)
        self.driver.add([(cell, 16), *(parts if out else [])], [*([] if out else parts), (cell + 16, 1)], number)
        self.driver.publish()

    def done(self) -> dict[int, int]:
        """Serve, wait for the helpers; the status of each request that was given back."""
        assert self.engine.serve(4) == IDLE
        self.engine.drain(30.0)
        return {number: self.window.bytes[CELL + 32 * number + 16] for number, _ in self.driver.reap(N)}  # type: ignore[operator]

    def close(self) -> None:
        self.engine.stop_helpers()
        for thread in self.threads:
            thread.join()
        self.engine.close()
        del self.engine, self.driver
        self.window.close()
        self.device.close()


@pytest.fixture(params=["interpreted", "compiled"])
def helped(
    request: pytest.FixtureRequest, load_build: Callable[[str, str], ModuleType], tmp_path: Path
) -> Iterator[Helped]:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(DISK))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nodma.device.blk.BlockEngine", load_build("nodma.device.blk_engine", request.param).BlockEngine)
        made = Helped(lambda name: load_build(name, request.param), image, helpers=2)
        yield made
        made.close()


def test_what_waits_is_left_to_helpers_and_given_back_whole(helped: Helped, tmp_path: Path) -> None:
    before = (tmp_path / "image").read_bytes()
    helped.offer(0, BlkType.FLUSH, 0, 0)
    helped.offer(1, BlkType.OUT, 9, 512, b"w" * 512)  # part of a page
    helped.offer(2, BlkType.GET_ID, 0, 20)
    helped.offer(3, BlkType.DISCARD, 0, 16, BlkRange.codec.pack(64, 8, 0))
    helped.offer(4, 99, 0, 0)
    assert helped.engine.serve(4) == IDLE
    assert helped.engine.requests == 5
    assert helped.engine.outstanding == 5
    assert helped.done() == {0: 0, 1: 0, 2: 0, 3: 0, 4: BlkStatus.UNSUPP}
    assert helped.engine.outstanding == 0
    assert bytes(helped.window.view(DATA + 2 * PAGE, 20)) == b"helped".ljust(20, b"\0")
    after = (tmp_path / "image").read_bytes()
    assert after[9 * 512 : 10 * 512] == b"w" * 512
    assert after[64 * 512 : 72 * 512] == bytes(8 * 512)
    assert after[: 9 * 512] == before[: 9 * 512]
    counted = helped.device.statistics()
    assert (counted["flushes"], counted["writes"], counted["discards"], counted["errors"]) == (1, 1, 1, 1)


def test_reads_of_what_is_not_cached_are_right(helped: Helped, tmp_path: Path) -> None:
    """The kernel forgets the file's pages where it can; whether it did or not, the data are the image's."""
    fd = helped.device.image.fd
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for number in range(N // 3):
        helped.offer(number, BlkType.IN, 8 * (5 * number + 1), PAGE)
    assert set(helped.done().values()) == {BlkStatus.OK}
    data = (tmp_path / "image").read_bytes()
    for number in range(N // 3):
        at = 8 * 512 * (5 * number + 1)
        assert bytes(helped.window.view(DATA + PAGE * number, PAGE)) == data[at : at + PAGE]
    assert helped.device.statistics()["bytes_read"] == N // 3 * PAGE


def test_more_requests_than_can_be_outstanding_are_done_all_the_same(helped: Helped) -> None:
    """A driver that makes the same head available again and again has more out than the queue has entries."""
    helped.offer(0, BlkType.FLUSH, 0, 0)
    avail = helped.window.words("H", LAYOUT.avail, 2 + N)
    for lap in range(1, 40):
        for place in range(N):
            avail[2 + place] = avail[2]
        avail[1] = N * lap
        assert helped.engine.serve(4) == IDLE
    helped.engine.drain(30.0)
    assert helped.device.statistics()["flushes"] == N * 39


@pytest.mark.parametrize("kind", ["interpreted", "compiled"])
def test_a_bug_in_a_sync_or_a_rare_request_is_an_error_of_that_request(
    load_build: Callable[[str, str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    def bug(*words: Any) -> None:
        raise KeyError("a bug")

    image = tmp_path / "image"
    image.write_bytes(bytes(DISK))
    with monkeypatch.context() as patch:
        patch.setattr("nodma.device.blk.BlockEngine", load_build("nodma.device.blk_engine", kind).BlockEngine)
        patch.setattr(Image, "sync", bug)
        patch.setattr(BlockDevice, "_handle_rare", bug)
        helped = Helped(lambda name: load_build(name, kind), image, helpers=1)
        helped.offer(0, BlkType.FLUSH, 0, 0)
        helped.offer(1, BlkType.GET_ID, 0, 20)
        assert helped.done() == {0: BlkStatus.IOERR, 1: BlkStatus.IOERR}
    helped.close()
    assert caplog.text.count("KeyError: 'a bug'") == 2


def offer_in_parts(helped: Helped, kind: int, sector: int, parts: int) -> int:
    """Offer one request with so many parts for its data, 512 bytes in all, indirect; return where its status is."""
    table, cell, data, status = 0x10000, CELL, DATA, DATA + PAGE
    BlkRequest.codec.pack_into(helped.window.bytes, cell, kind, 0, sector)
    helped.window.bytes[status] = 0xFF
    cuts = [(data + at, 1) for at in range(parts - 1)] + [(data + parts - 1, 512 - parts + 1)]
    chain = [(cell, 16, 0), *((at, length, DescFlag.WRITE) for at, length in cuts), (status, 1, DescFlag.WRITE)]
    for index, (at, length, flag) in enumerate(chain):
        following = index + 1 if index + 1 < len(chain) else 0
        flag |= DescFlag.NEXT if following else 0
        Descriptor.codec.pack_into(helped.window.bytes, table + 16 * index, at, length, flag, following)
    Descriptor.codec.pack_into(helped.window.bytes, LAYOUT.desc, table, 16 * len(chain), DescFlag.INDIRECT, 0)
    struct.pack_into("<HHH", helped.window.bytes, LAYOUT.avail, 0, 1, 0)
    return status


@pytest.mark.parametrize(("parts", "left"), [(127, 1), (128, 1), (129, 0), (500, 0)])
def test_a_request_of_more_parts_than_can_be_remembered_is_not_left_to_a_helper(
    helped: Helped, parts: int, left: int
) -> None:
    """Their offsets would be written beyond the memory that is there for them."""
    status = offer_in_parts(helped, BlkType.GET_ID, 0, parts)
    assert helped.engine.serve(4) == IDLE
    assert helped.engine.outstanding == left
    assert helped.engine.drain(30.0)
    assert helped.window.bytes[status] == BlkStatus.OK
    assert bytes(helped.window.view(DATA, 20)) == b"helped".ljust(20, b"\0")


@pytest.mark.parametrize("parts", [127, 128, 129, 500])
def test_a_read_in_many_parts_is_whole(helped: Helped, tmp_path: Path, parts: int) -> None:
    helped.engine.durable = True
    os.posix_fadvise(helped.device.image.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    status = offer_in_parts(helped, BlkType.IN, 5, parts)
    assert helped.engine.serve(4) == IDLE
    assert helped.engine.drain(30.0)
    assert helped.window.bytes[status] == BlkStatus.OK
    assert bytes(helped.window.view(DATA, 512)) == (tmp_path / "image").read_bytes()[5 * 512 : 6 * 512]


class Hanging:
    """Stands in for the image's discard, which then does not return before :meth:`answer`."""

    def __init__(self, device: BlockDevice, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Semaphore(0)
        self.answers = threading.Event()
        self.calls = 0
        monkeypatch.setattr(device.image, "discard", self._discard)

    def _discard(self, *_: object) -> None:
        self.calls += 1
        self.reached.release()
        assert self.answers.wait(30.0)


def test_what_is_cancelled_is_neither_begun_nor_given_back(helped: Helped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two helpers hang; what waits behind them is dropped, and nothing is written to the window."""
    hanging = Hanging(helped.device, monkeypatch)
    for number in range(2):
        helped.offer(number, BlkType.DISCARD, 0, 16, BlkRange.codec.pack(8, 8, 0))
    helped.offer(2, BlkType.DISCARD, 0, 16, BlkRange.codec.pack(8, 8, 0))
    helped.offer(3, BlkType.GET_ID, 0, 20)
    helped.offer(4, BlkType.OUT, 9, 512, b"w" * 512)  # part of a page
    before = bytes(helped.window.bytes[CELL:])
    disk = helped.device.image.path.read_bytes()
    assert helped.engine.serve(4) == IDLE
    for _ in range(2):
        assert hanging.reached.acquire(timeout=30)
    assert helped.engine.outstanding == 5
    assert not helped.engine.cancelled()
    helped.engine.cancel()
    assert helped.engine.cancelled()
    assert not helped.engine.drain(0.05)
    hanging.answers.set()
    assert helped.engine.drain(30.0)
    assert helped.engine.outstanding == 0
    assert hanging.calls == 2
    assert bytes(helped.window.bytes[CELL:]) == before
    assert helped.driver.reap(N) == []
    assert helped.device.image.path.read_bytes() == disk


def test_a_batch_that_is_cancelled_ends(helped: Helped, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue's own thread is in a call, for no helper takes that many parts."""
    hanging = Hanging(helped.device, monkeypatch)
    served: list[int] = []
    for index in range(4):
        BlkRequest.codec.pack_into(helped.window.bytes, CELL + 32 * index, BlkType.DISCARD, 0, 0)
        parts = [(CELL + 32 * index, 16), (DATA, 16), *[(DATA + PAGE, 0)] * 130]
        BlkRange.codec.pack_into(helped.window.bytes, DATA, 8, 8, 0)
        table = TABLE + 0x3000 + 0x1000 * index
        for at, (addr, length) in enumerate(parts):
            Descriptor.codec.pack_into(helped.window.bytes, table + 16 * at, addr, length, DescFlag.NEXT, at + 1)
        status = CELL + 32 * index + 16
        Descriptor.codec.pack_into(helped.window.bytes, table + 16 * len(parts), status, 1, DescFlag.WRITE, 0)
        length = 16 * (len(parts) + 1)
        Descriptor.codec.pack_into(helped.window.bytes, 16 * index, table, length, DescFlag.INDIRECT, 0)
        helped.window.bytes[status] = 0xEE
    struct.pack_into(f"<HH{N}HH", helped.window.bytes, LAYOUT.avail, 0, 4, *range(N), 0)
    thread = threading.Thread(target=lambda: served.append(helped.engine.serve(4)))
    thread.start()
    assert hanging.reached.acquire(timeout=30)
    assert helped.engine.in_call()
    helped.engine.cancel()
    hanging.answers.set()
    thread.join(30.0)
    assert not thread.is_alive()
    assert (served, hanging.calls) == ([IDLE], 1)
    assert not helped.engine.in_call()
    assert helped.window.bytes[CELL + 16] == 0xEE
    assert helped.window.words("H", LAYOUT.used, 2)[1] == 0


def test_a_sync_that_is_cancelled_lets_its_helper_go(helped: Helped, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, reached = threading.Event(), threading.Semaphore(0)

    def hang(_: int) -> None:
        reached.release()
        assert answers.wait(30.0)

    monkeypatch.setattr(os, "fdatasync", hang)
    for number in range(3):
        helped.offer(number, BlkType.FLUSH, 0, 0)
    assert helped.engine.serve(4) == IDLE
    assert reached.acquire(timeout=30)
    helped.engine.cancel()
    assert helped.engine.drain(30.0)  # although the disk hangs on
    answers.set()


def test_a_truncated_image_is_not_made_longer_by_helpers(helped: Helped, tmp_path: Path) -> None:
    os.truncate(tmp_path / "image", PAGE)
    helped.offer(0, BlkType.OUT, 9, 512, b"w" * 512)  # part of a page: a helper's
    helped.offer(1, BlkType.OUT, 16, PAGE, b"w" * PAGE)
    helped.offer(2, BlkType.OUT, 1, 512, b"w" * 512)
    assert helped.done() == {0: BlkStatus.IOERR, 1: BlkStatus.IOERR, 2: BlkStatus.OK}
    assert (tmp_path / "image").stat().st_size == PAGE


def test_what_cannot_decline_to_wait_is_left_to_helpers(helped: Helped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and writes on NFS or FUSE: the page cache may hold them, or somebody far away may have to answer."""
    image = helped.device.image
    monkeypatch.setattr(image, "can_decline_to_wait", False)
    remote = helped.device.make_engine(helped.device.queues[0], helped.engine.ring)
    remote.start_helpers()
    helped.offer(0, BlkType.IN, 0, PAGE)
    helped.offer(1, BlkType.OUT, 8, PAGE, b"w" * PAGE)
    assert remote.serve(4) == IDLE
    assert remote.outstanding == 2
    remote.cancel()
    remote.stop_helpers()
    remote.close()


def test_looking_for_the_end_of_a_block_device_keeps_no_pause_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux keeps lseek(2) on a block device waiting while it discards: whoever pauses sees a call under way."""
    engines: list[Any] = []
    build = load_interpreted("nodma.device.blk_engine")
    size, seen = build.syscalls.size, []

    class Watched(build.BlockEngine):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            engines.append(self)

    def look(fd: int) -> int:
        seen.append(engines[0].in_call())
        return int(size(fd))

    monkeypatch.setattr(build.syscalls, "size", look)
    memory = bytearray(SIZE)
    BlkRequest.codec.pack_into(memory, CELL, BlkType.OUT, 0, 0)
    for index, (at, length, flag) in enumerate([(CELL, 16, 1), (DATA, PAGE, 1), (CELL + 16, 1, 2)]):
        Descriptor.codec.pack_into(memory, 16 * index, at, length, flag, index + 1)
    struct.pack_into("<HHH", memory, LAYOUT.avail, 0, 1, 0)
    monkeypatch.setattr(build, "BlockEngine", Watched)
    served(load_interpreted, bytes(memory), tmp_path / "disk", read_only=False)
    assert seen == [True]
