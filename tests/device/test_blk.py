"""The block device, request by request, whatever the framing and whatever the driver wants."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.device import BlockDevice
from nodma.device.blk import request_limits
from nodma.device.image import Cache, Image
from nodma.errors import UsageError
from nodma.ring import IDLE, DriverRing, RingLayout
from nodma.spec.virtio_blk import SECTOR, BlkConfig, BlkFeature, BlkRange, BlkRequest, BlkStatus, BlkType
from nodma.window import Window

DISK = 1 << 20
OK, IOERR, UNSUPP = BlkStatus.OK, BlkStatus.IOERR, BlkStatus.UNSUPP
POOL = 1 << 20
LAYOUT = RingLayout.packed_at(0, 64)
CELLS = 0x4000  # where requests' parts lie in the window
Made = Callable[..., BlockDevice]


@pytest.fixture(params=["interpreted", "compiled"], autouse=True)
def build(request: pytest.FixtureRequest, load_build: Callable[[str, str], ModuleType]) -> Iterator[str]:
    """Paths and rings of one build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nodma.device.blk.BlockEngine", load_build("nodma.device.blk_engine", request.param).BlockEngine)
        patch.setattr(Asked, "ring", load_build("nodma.ring.device_end", request.param).DeviceRing)
        yield request.param


@pytest.fixture
def disk(image: Path) -> Iterator[Made]:
    made: list[BlockDevice] = []

    def make(*, features: int | None = None, pool: int = 16 << 20, **options: Any) -> BlockDevice:
        opened = {name: options.pop(name) for name in ("read_only", "cache") if name in options}
        device = BlockDevice(Image(image, lock=False, **opened), pool=pool, **options)
        device.start(device.features if features is None else features)
        made.append(device)
        return device

    yield make
    for device in made:
        device.close()


class Asked:
    """A request that goes through a ring of its own, from a driver to the device and back."""

    ring: Any = None

    @classmethod
    def some_ring(cls) -> Any:
        """A ring that nobody fills."""
        window = Window.create(1 << 20)
        return cls.ring(window, LAYOUT, base=0, first=0, limit=window.size, indirect=True, event_idx=True)

    def __init__(self, device: BlockDevice, readable: list[bytes], writable: list[int]) -> None:
        """Do it; ``writable`` are the lengths of the parts to fill."""
        with Window.create(8 << 20) as window:
            reach: dict[str, Any] = {"base": 0, "first": 0, "limit": window.size}
            ring = self.ring(window, LAYOUT, indirect=True, event_idx=True, **reach)
            driver = DriverRing(window, LAYOUT, base=0, event_idx=True)
            at, parts = CELLS, []
            for data in (*readable, *(b"\xff" * length for length in writable)):
                window.bytes[at : at + len(data)] = data
                parts.append((at, len(data)))
                at += len(data) + 3
            assert driver.add(parts[: len(readable)], parts[len(readable) :], self)
            driver.publish()
            path = device.make_engine(device.queues[0], ring)
            assert path.serve(4) == IDLE
            path.close()
            ((_, self.written),) = driver.reap(4)
            self.answer = b"".join(
                bytes(window.bytes[offset : offset + length]) for offset, length in parts[len(readable) :]
            )
            del ring, driver, path


def ask(
    device: BlockDevice, kind: int, sector: int = 0, out: bytes = b"", back: int = 0, header: bytes | None = None
) -> tuple[int, bytes, int]:
    """Do one request in the usual framing; gives status, data and the bytes said to be written."""
    head = BlkRequest.codec.pack(kind, 0, sector) if header is None else header
    asked = Asked(device, [part for part in (head, out) if part], [*([back] if back else []), 1])
    return asked.answer[-1], asked.answer[:-1], asked.written


def test_read_gives_what_is_in_the_image(disk: Made, image: Path) -> None:
    status, data, written = ask(disk(), BlkType.IN, 5, back=4096)
    assert (status, written) == (OK, 4097)
    assert data == image.read_bytes()[5 * SECTOR : 5 * SECTOR + 4096]


def test_write_goes_into_the_image(disk: Made, image: Path) -> None:
    before = image.read_bytes()
    assert ask(disk(), BlkType.OUT, 7, b"w" * 1024) == (OK, b"", 1)
    assert image.read_bytes() == before[: 7 * SECTOR] + b"w" * 1024 + before[9 * SECTOR :]


def test_a_flush_syncs_the_image(disk: Made) -> None:
    device = disk()
    assert ask(device, BlkType.FLUSH)[0] == OK
    assert device.statistics()["flushes"] == 1
    with failing(device):
        assert ask(device, BlkType.FLUSH)[0] == IOERR
    assert ask(device, BlkType.FLUSH)[0] == IOERR  # what was lost stays lost


@pytest.mark.parametrize("without", ["driver", "device"])
def test_without_flush_each_write_is_durable(
    disk: Made, build: str, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    """Be it that the driver did not take it, or that the device did not offer it (5.2.5.1)."""
    flags: list[int] = []
    write = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda *words: flags.append(words[3]) or write(*words))
    device = disk(features=0) if without == "driver" else disk(cache=Cache.WRITETHROUGH)
    assert bool(device.features & BlkFeature.FLUSH.mask) == (without == "driver")
    ask(device, BlkType.OUT, 0, b"w" * 4096)
    ask(disk(), BlkType.OUT, 0, b"w" * 4096)
    assert [engine.durable for engine in device._engines] == [True]
    assert flags == ([os.RWF_DSYNC, 0] if build == "interpreted" else [])  # compiled, it is not Python that writes


def test_without_the_page_cache_any_request_is_done(disk: Made, image: Path) -> None:
    """Aligned for O_DIRECT or not: the rest goes through the page cache."""
    device = disk(cache=Cache.NONE)
    before = image.read_bytes()
    assert ask(device, BlkType.IN, 3, back=512)[:2] == (OK, before[3 * SECTOR : 4 * SECTOR])
    assert ask(device, BlkType.OUT, 5, b"d" * 1536) == (OK, b"", 1)
    assert image.read_bytes()[5 * SECTOR : 8 * SECTOR] == b"d" * 1536


def test_get_id_gives_the_serial(disk: Made) -> None:
    assert ask(disk(serial="a-disk"), BlkType.GET_ID, back=20) == (OK, b"a-disk".ljust(20, b"\0"), 21)
    assert ask(disk(serial="x" * 20), BlkType.GET_ID, back=20)[1] == b"x" * 20


@pytest.mark.parametrize("kind", [BlkType.DISCARD, BlkType.WRITE_ZEROES])
@pytest.mark.parametrize("unmap", [0, 1])
def test_ranges_read_as_zeros_after(disk: Made, image: Path, kind: BlkType, unmap: int) -> None:
    flags = unmap if kind == BlkType.WRITE_ZEROES else 0
    ranges = BlkRange.codec.pack(8, 8, flags) + BlkRange.codec.pack(64, 16, flags)
    before = image.read_bytes()
    device = disk()
    assert ask(device, kind, 0, ranges)[0] == OK
    after = image.read_bytes()
    assert after[8 * SECTOR : 16 * SECTOR] == bytes(8 * SECTOR)
    assert after[64 * SECTOR : 80 * SECTOR] == bytes(16 * SECTOR)
    assert after[: 8 * SECTOR] + after[80 * SECTOR :] == before[: 8 * SECTOR] + before[80 * SECTOR :]
    assert len(after) == len(before)


def test_zeroes_are_written_where_the_file_system_cannot_make_them(
    disk: Made, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Image, "_fallocate", cannot)
    device = disk()
    assert ask(device, BlkType.WRITE_ZEROES, 0, BlkRange.codec.pack(1, 300, 0))[0] == OK
    assert image.read_bytes()[SECTOR : 301 * SECTOR] == bytes(300 * SECTOR)
    assert ask(device, BlkType.DISCARD, 0, BlkRange.codec.pack(400, 8, 0))[0] == OK  # advice, and not taken


@pytest.mark.parametrize(
    ("kind", "ranges", "status"),
    [
        (BlkType.DISCARD, [], IOERR),
        (BlkType.DISCARD, [(0, 1, 1)], UNSUPP),  # unmap is for WRITE_ZEROES alone (5.2.6.2)
        (BlkType.WRITE_ZEROES, [(0, 1, 2)], UNSUPP),
        (BlkType.WRITE_ZEROES, [(0, 0, 0)], IOERR),
        (BlkType.WRITE_ZEROES, [(2047, 2, 0)], IOERR),
        (BlkType.WRITE_ZEROES, [(2**64 - 1, 1, 0)], IOERR),
        (BlkType.WRITE_ZEROES, [(0, 2**32 - 1, 0)], IOERR),
        (BlkType.WRITE_ZEROES, [(0, 1, 0)] * 9, IOERR),
        (BlkType.WRITE_ZEROES, [(0, 8, 0), (4096, 1, 0)], IOERR),  # and the good one is not done either
    ],
)
def test_bad_ranges_touch_nothing(
    disk: Made, image: Path, kind: BlkType, ranges: list[tuple[int, int, int]], status: BlkStatus
) -> None:
    before = image.read_bytes()
    assert ask(disk(), kind, 0, b"".join(BlkRange.codec.pack(*each) for each in ranges))[0] == status
    assert image.read_bytes() == before


def test_a_range_of_an_odd_length_is_an_error(disk: Made) -> None:
    assert ask(disk(), BlkType.DISCARD, 0, b"x" * 17)[0] == IOERR


@pytest.mark.parametrize(
    ("kind", "sector", "out", "back", "status"),
    [
        (BlkType.IN, 2047, b"", 512, OK),
        (BlkType.IN, 2047, b"", 1024, IOERR),
        (BlkType.IN, 2048, b"", 512, IOERR),
        (BlkType.IN, 2**64 - 1, b"", 512, IOERR),
        (BlkType.IN, 2**55, b"", 512, IOERR),
        (BlkType.IN, 0, b"", 511, IOERR),
        (BlkType.IN, 0, b"", 0, IOERR),
        (BlkType.OUT, 2048, b"x" * 512, 0, IOERR),
        (BlkType.OUT, 0, b"x" * 100, 0, IOERR),
        (BlkType.OUT, 0, b"", 0, IOERR),
        (BlkType.SECURE_ERASE, 0, b"", 0, UNSUPP),
        (BlkType.GET_LIFETIME, 0, b"", 6, UNSUPP),
        (99, 0, b"x", 5, UNSUPP),
        (2**32 - 1, 0, b"", 0, UNSUPP),
    ],
)
def test_what_cannot_be_done_gets_its_status(
    disk: Made, image: Path, kind: int, sector: int, out: bytes, back: int, status: BlkStatus
) -> None:
    before = image.read_bytes()
    device = disk()
    got, _, written = ask(device, kind, sector, out, back)
    assert got == status
    if status != OK:
        assert (written, device.statistics()["errors"], image.read_bytes()) == (0, 1, before)


@pytest.mark.parametrize("length", range(16))
def test_a_short_header_is_an_error_and_no_exception(disk: Made, length: int) -> None:
    header = BlkRequest.codec.pack(BlkType.OUT, 0, 0)[:length]
    assert ask(disk(), 0, header=header)[0] == IOERR


def test_a_request_with_nowhere_for_a_status_comes_back_empty(disk: Made) -> None:
    device = disk()
    assert Asked(device, [bytes(16)], []).written == 0
    assert Asked(device, [bytes(16)], [512, 0]).written == 0
    assert device.statistics()["errors"] == 2


def test_a_request_longer_than_the_limits_is_an_error(disk: Made, image: Path) -> None:
    before = image.read_bytes()
    device = disk(pool=64 << 10)
    most = device.config.size_max * device.config.seg_max
    assert ask(device, BlkType.IN, 0, back=most)[0] == OK
    assert ask(device, BlkType.IN, 0, back=most + 512)[0] == IOERR
    assert ask(device, BlkType.OUT, 0, b"x" * (most + 512))[0] == IOERR
    assert image.read_bytes() == before


def test_a_read_only_disk_says_so_and_refuses_writes(disk: Made, image: Path) -> None:
    before = image.read_bytes()
    device = disk(read_only=True)
    assert device.features & BlkFeature.RO.mask
    assert not device.features & (BlkFeature.DISCARD.mask | BlkFeature.WRITE_ZEROES.mask)
    for kind, out in ((BlkType.OUT, b"x" * 512), (BlkType.WRITE_ZEROES, BlkRange.codec.pack(0, 1, 0))):
        assert ask(device, kind, 0, out)[0] == IOERR
    assert ask(device, BlkType.FLUSH)[0] == OK
    assert ask(device, BlkType.IN, 0, back=512)[:2] == (OK, before[:512])
    assert image.read_bytes() == before


def test_an_image_that_shrank_gives_errors_not_exceptions(disk: Made, image: Path) -> None:
    device = disk()
    os.truncate(image, 4096 + 100)
    assert ask(device, BlkType.IN, 8, back=512)[0] == IOERR
    assert ask(device, BlkType.IN, 0, back=512)[0] == OK


@contextmanager
def failing(device: BlockDevice) -> Iterator[None]:
    """Every write ends in ENOSPC, every flush in EINVAL."""
    image, syncer = device.image, device.image._syncer
    fds = image.fd, image.buffered_fd, syncer._fd
    full = image.fd = image.buffered_fd = syncer._fd = os.open("/dev/full", os.O_RDWR)
    try:
        yield
    finally:
        image.fd, image.buffered_fd, syncer._fd = fds
        os.close(full)


def test_an_image_that_fails_gives_errors_not_exceptions(disk: Made) -> None:
    device = disk()
    with failing(device):
        assert ask(device, BlkType.OUT, 0, b"x" * 512)[0] == IOERR


def cut(length: int, cuts: list[int]) -> list[int]:
    """Cut a length in pieces, some of which may be empty; the last is not."""
    edges = [0, *sorted(cut % length for cut in cuts), length]
    return [end - begin for begin, end in pairwise(edges)]


@given(
    cuts=st.lists(st.integers(0, 5000), max_size=6),
    back=st.lists(st.integers(0, 5000), max_size=6),
    kind=st.sampled_from([BlkType.IN, BlkType.OUT, BlkType.GET_ID]),
)
def test_any_framing_gives_the_same_result(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], back: list[int], kind: BlkType
) -> None:
    path = tmp_path_factory.getbasetemp() / "framing.img"
    path.write_bytes(bytes(range(256)) * 64)
    with Image(path) as image:
        device = BlockDevice(image, pool=1 << 20, serial="framed")
        device.start(device.features)
        out = b"o" * 1024 if kind == BlkType.OUT else b""
        length = {BlkType.IN: 2048, BlkType.OUT: 0, BlkType.GET_ID: 20}[kind]
        data = BlkRequest.codec.pack(kind, 0, 3) + out
        readable, at = [], 0
        for size in cut(len(data), cuts):
            readable.append(data[at : at + size])
            at += size
        answer = Asked(device, readable, cut(length + 1, back)).answer
        assert answer[-1] == OK
        if kind == BlkType.IN:
            assert answer[:-1] == path.read_bytes()[3 * SECTOR : 3 * SECTOR + 2048]
        elif kind == BlkType.OUT:
            assert path.read_bytes()[3 * SECTOR : 3 * SECTOR + 1024] == out
        else:
            assert answer[:-1] == b"framed".ljust(20, b"\0")


def test_many_small_parts_and_empty_ones_make_one_read(disk: Made, image: Path) -> None:
    device = disk()
    data = image.read_bytes()
    answer = Asked(device, [BlkRequest.codec.pack(BlkType.IN, 0, 0)], [16] * 32 + [0] * 8 + [1]).answer
    assert answer == data[:512] + b"\0"


@pytest.mark.parametrize("order", range(16, 33))
def test_the_largest_request_fits_a_quarter_of_the_pool(order: int) -> None:
    size_max, seg_max = request_limits(1 << order)
    assert size_max * seg_max <= (1 << order) // 4
    assert size_max >= 4096
    assert size_max % 4096 == 0
    assert 1 <= seg_max <= 126


def test_the_configuration_tells_of_the_disk(disk: Made) -> None:
    config = disk(queues=4, pool=16 << 20).config
    assert (config.capacity, config.blk_size, config.num_queues) == (DISK // SECTOR, 512, 4)
    assert (config.size_max, config.seg_max) == request_limits(16 << 20)
    assert SECTOR << config.physical_block_exp == 4096
    assert BlkConfig.num_queues.offset == 34  # 5.2.4
    assert struct.calcsize("<QII") == BlkConfig.cylinders.offset


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"queues": 0}, "queues 0: expected 1 to 256"),
        ({"queues": 257}, "queues 257"),
        ({"serial": "x" * 21}, "expected up to 20 ASCII characters"),
        ({"serial": "ü"}, "expected up to 20 ASCII characters"),
        ({"block_size": 1024}, "invalid block size 1024: expected 512 or 4096"),
    ],
)
def test_a_disk_that_cannot_be_is_refused(image: Path, options: dict[str, Any], why: str) -> None:
    with Image(image) as opened, pytest.raises(UsageError, match=why):
        BlockDevice(opened, pool=1 << 20, **options)


def test_the_block_sizes_are_those_of_the_device_below(disk: Made, image: Path) -> None:
    opened = disk().image
    opened.physical_block, opened.min_io, opened.optimal_io = 4096, 64 << 10, 1 << 20
    for block, physical_exp, in_blocks in ((512, 3, 128), (4096, 0, 16)):
        config = BlockDevice(opened, pool=16 << 20, block_size=block).config
        assert (config.blk_size, config.physical_block_exp) == (block, physical_exp)
        assert config.min_io_size == in_blocks
        assert config.opt_io_size * block == 1 << 20
        assert config.discard_sector_alignment == 8  # in sectors of 512, whatever the block (5.2.4)
        assert config.capacity == DISK // SECTOR
    opened.optimal_io = 1 << 30  # more than a request may be
    config = BlockDevice(opened, pool=16 << 20).config
    assert config.opt_io_size * 512 <= config.size_max * config.seg_max
    assert config.opt_io_size * 512 % 4096 == 0
    os.truncate(image, 4096 + 512)
    with Image(image, lock=False) as odd, pytest.raises(UsageError, match="expected a multiple of the block size 4096"):
        BlockDevice(odd, pool=1 << 20, block_size=4096)


WCE = BlkFeature.CONFIG_WCE.mask
WRITEBACK = BlkConfig.writeback.offset


def test_the_driver_may_switch_the_cache(disk: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(Image, "begin_sync", lambda _: synced.append(1))
    device = disk()
    assert device.features & WCE
    assert device.config.writeback == 1
    engine = device.make_engine(device.queues[0], Asked.some_ring())
    assert not engine.durable
    device.config_written(WRITEBACK, b"\0")
    assert (device.config.writeback, engine.durable, len(synced)) == (0, True, 1)  # what was cached is synced at once
    device.config_written(WRITEBACK, b"\0")
    assert len(synced) == 1
    device.config_written(WRITEBACK - 4, bytes(4) + b"\7")
    assert (device.config.writeback, engine.durable) == (1, False)
    device.config_written(WRITEBACK + 1, b"\0")
    device.config_written(0, bytes(8))
    assert (device.config.writeback, device.config.capacity) == (1, DISK // SECTOR)
    device.config_written(WRITEBACK, b"\0")
    device.reset()
    assert device.config.writeback == 1
    engine.close()


def test_the_cache_is_the_drivers_only_where_it_is_negotiated(disk: Made) -> None:
    device = disk(features=BlkFeature.FLUSH.mask)  # without CONFIG_WCE
    device.config_written(WRITEBACK, b"\0")
    assert not device._durable
    device = disk(features=WCE)  # without FLUSH it is write-through (5.2.5.2)
    assert (device.config.writeback, device._durable) == (0, True)
    device.config_written(WRITEBACK, b"\1")
    assert device._durable
    for options in ({"cache": Cache.WRITETHROUGH}, {"read_only": True}):
        device = disk(**options)
        assert not device.features & WCE
        before = bytes(device.config)
        device.config_written(WRITEBACK, b"\0")
        assert bytes(device.config) == before


def test_once_data_was_lost_nothing_is_durable_any_more(disk: Made) -> None:
    device = disk()
    assert ask(device, BlkType.OUT, 0, b"w" * 512)[0] == OK
    with failing(device):
        assert ask(device, BlkType.FLUSH)[0] == IOERR
    device.config_written(WRITEBACK, b"\0")
    assert ask(device, BlkType.OUT, 0, b"w" * 512)[0] == IOERR
    assert ask(device, BlkType.DISCARD, 0, BlkRange.codec.pack(8, 8, 0))[0] == IOERR
    assert ask(device, BlkType.IN, 0, back=512)[0] == OK


def test_a_sync_that_failed_when_a_client_left_fails_the_next_clients_flush(disk: Made) -> None:
    device = disk()
    with failing(device):
        device.drain()
        with pytest.raises(OSError, match="Invalid argument"):
            device.image.sync()
    device.reset()
    device.start(device.features)
    assert ask(device, BlkType.FLUSH)[0] == IOERR
    device.close()
    assert "has lost what was written to it" in device.unfinished


def test_an_image_that_has_grown_is_a_larger_disk(disk: Made, image: Path) -> None:
    told: list[int] = []
    device = disk(block_size=4096)
    device.on_config_change(lambda: told.append(device.config.capacity))
    device.reload()
    assert not told
    assert ask(device, BlkType.IN, DISK // SECTOR, back=512)[0] == IOERR
    os.truncate(image, 2 * DISK + 4096 + 512)
    engine = device.make_engine(device.queues[0], Asked.some_ring())  # one that is in use
    device.reload()
    assert told == [(2 * DISK + 4096) // SECTOR]  # in whole blocks
    assert engine.sectors == told[0]
    engine.close()
    assert ask(device, BlkType.IN, DISK // SECTOR, back=512)[:2] == (OK, bytes(512))
    assert ask(device, BlkType.OUT, told[0] - 1, b"x" * 512)[0] == OK
    assert ask(device, BlkType.OUT, told[0], b"x" * 512)[0] == IOERR
    assert ask(device, BlkType.DISCARD, 0, BlkRange.codec.pack(told[0] - 1, 1, 0))[0] == OK
    os.truncate(image, DISK)
    with pytest.raises(UsageError, match="has shrunk"):
        device.reload()
    assert len(told) == 1


def test_writes_beyond_a_truncated_images_end_fail_and_do_not_make_it_longer(
    disk: Made, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for cache in (Cache.WRITEBACK, Cache.WRITETHROUGH, Cache.NONE):
        os.truncate(image, DISK)
        device = disk(cache=cache)
        os.truncate(image, 8192)
        caplog.clear()
        for sector, length in ((16, 512), (1024, 4096), (15, 1024)):
            assert ask(device, BlkType.OUT, sector, b"x" * length)[0] == IOERR
        assert f"image {image}: it is shorter than the disk" in caplog.text
        assert image.stat().st_size == 8192
        assert ask(device, BlkType.OUT, 15, b"x" * 512)[0] == OK
        assert ask(device, BlkType.WRITE_ZEROES, 0, BlkRange.codec.pack(15, 8, 0))[0] == IOERR
        assert image.stat().st_size == 8192
