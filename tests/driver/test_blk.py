"""The block device of Python callers, over a real server in another thread."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodma.driver import VirtioPci, open_disk
from nodma.errors import DeviceFailed, Disconnected, ProbeError, UsageError
from nodma.spec.profiles import Policy
from nodma.spec.virtio import Feature
from nodma.spec.virtio_pci import CommonCfg

DISK = 1 << 20
MODEL: list[tuple[Any, bytearray]] = []


@pytest.mark.parametrize("polling", [False, True])
@pytest.mark.parametrize("queues", [1, 2])
def test_what_is_written_is_read_and_in_the_image(served: Any, image: Path, polling: bool, queues: int) -> None:
    data = random.Random(3).randbytes(DISK)
    with open_disk(served.path, queues=queues, polling=polling) as disk:
        assert (disk.size, disk.read_only) == (DISK, False)
        assert disk.pread(DISK, 0) == image.read_bytes()
        assert disk.pwrite(data, 0) == DISK
        disk.flush()
        assert image.read_bytes() == data
        assert disk.pread(DISK, 0) == data
        assert disk.statistics.used == 0
    assert served.function.core.counters.outside == 0


def test_any_offset_and_length_like_a_file(served: Any, image: Path) -> None:
    model = bytearray(image.read_bytes())
    with open_disk(served.path) as disk:
        for offset, length in ((0, 1), (511, 2), (1000, 5), (4095, 4098), (DISK - 1, 1), (0, 0), (DISK, 0)):
            data = bytes([offset % 251]) * length
            assert disk.pwrite(data, offset) == length
            model[offset : offset + length] = data
            assert disk.pread(length + 20, max(0, offset - 10)) == model[max(0, offset - 10) :][: length + 20]
        assert disk.pread(100, DISK - 10) == model[-10:]
        assert disk.pread(5, DISK + 5) == b""
        for offset in (-1, DISK):
            with pytest.raises(UsageError, match="lie outside the disk of 1048576 bytes"):
                disk.pwrite(b"x", offset)
    assert image.read_bytes() == model


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from("rwzd"), st.integers(0, DISK - 1), st.integers(0, 70_000), st.integers(0, 255)),
        max_size=12,
    )
)
def test_any_sequence_agrees_with_a_bytearray(operations: list[tuple[str, int, int, int]]) -> None:
    disk, model = MODEL[0]
    for kind, offset, length, value in operations:
        length = min(length, DISK - offset)
        begin, end = offset // 512 * 512, (offset + length) // 512 * 512
        if kind == "r":
            assert disk.pread(length, offset) == model[offset : offset + length]
        elif kind == "w":
            disk.pwrite(bytes([value]) * length, offset)
            model[offset : offset + length] = bytes([value]) * length
        elif end > begin:
            (disk.write_zeroes if kind == "z" else disk.discard)(begin, end - begin)
            model[begin:end] = bytes(end - begin)
    assert disk.pread(DISK, 0) == model


@pytest.fixture(autouse=True)
def model(request: pytest.FixtureRequest) -> Any:
    """The disk of the property above, and what it must hold."""
    if "bytearray" not in request.node.name:
        yield
        return
    served, image = request.getfixturevalue("served"), request.getfixturevalue("image")
    with open_disk(served.path) as disk:
        MODEL[:] = [(disk, bytearray(image.read_bytes()))]
        yield
        MODEL.clear()


def test_many_requests_in_flight_come_back_each_with_its_own(served: Any, image: Path) -> None:
    contents = image.read_bytes()
    source = random.Random(5)
    with open_disk(served.path, queues=2, depth=64) as disk:
        expected: dict[int, tuple[bytearray, int]] = {}
        for _ in range(3000):
            sector = source.randrange(DISK // 512 - 8)
            buffer = bytearray(512 * source.randrange(1, 9))
            expected[id(disk.submit_read(512 * sector, buffer))] = (buffer, sector)
            for ticket in disk.reap():
                buffer, sector = expected.pop(id(ticket))
                assert buffer == contents[512 * sector :][: len(buffer)]
        while disk.in_flight:
            for ticket in disk.wait():
                buffer, sector = expected.pop(id(ticket))
                assert buffer == contents[512 * sector :][: len(buffer)]
        assert not expected


def test_reading_at_once_takes_nothing_from_those_in_flight(served: Any, image: Path) -> None:
    contents = image.read_bytes()
    with open_disk(served.path) as disk:
        sent = [disk.submit_read(512 * number, bytearray(512)) for number in range(8)]
        assert disk.pread(100, 5) == contents[5:105]
        found = []
        while len(found) < 8:
            found += disk.wait()
        assert set(map(id, found)) == set(map(id, sent))
        assert disk.wait() == []


def test_a_pool_so_small_that_it_fills_is_slower_and_correct(make_served: Callable[..., Any], image: Path) -> None:
    contents = image.read_bytes()
    with make_served(pool=64 << 10, queues=2).running() as served, open_disk(served.path, queues=2) as disk:
        buffers = [bytearray(disk.max_request) for _ in range(60)]
        for number, buffer in enumerate(buffers):
            disk.submit_read(number * len(buffer), buffer)
        while disk.in_flight:
            disk.wait()
        assert b"".join(buffers) == contents[: sum(map(len, buffers))]
        assert disk.statistics.full > 0
        assert disk.statistics.peak <= disk.statistics.slots
        disk.pwrite(contents[::-1], 0)
        assert disk.pread(DISK, 0) == contents[::-1]


def test_the_device_sees_nothing_of_a_buffer_that_it_is_to_fill(served: Any) -> None:
    with open_disk(served.path) as disk:
        disk.submit_read(0, bytearray(b"the caller's secret".ljust(4096)))
        assert b"the caller's secret" not in bytes(served.function.window.bytes)
        while disk.in_flight:
            disk.wait()


def test_feature_27_is_accepted_and_every_address_lies_in_the_window(served: Any) -> None:
    with open_disk(served.path) as disk:
        assert disk.features & Feature.SWIOTLB.mask  # SW-D1
        assert {"SWIOTLB", "VERSION_1", "ACCESS_PLATFORM"} <= set(disk.feature_names)
        disk.pread(DISK, 0)
        assert served.function.core.accepted == disk.features
        assert served.function.core.counters.outside == 0  # SW-D2


def test_errors_are_those_of_files(make_served: Callable[..., Any], image: Path) -> None:
    before = image.read_bytes()
    with make_served(read_only=True).running() as served, open_disk(served.path) as disk:
        assert disk.read_only
        with pytest.raises(OSError, match="I/O error"):
            disk.pwrite(b"x" * 512, 0)
        with pytest.raises(OSError, match="does not offer DISCARD"):
            disk.discard(0, 512)
        assert disk.pread(512, 0) == before[:512]
    assert image.read_bytes() == before


def test_ranges_are_whole_sectors(served: Any) -> None:
    with open_disk(served.path) as disk:
        for offset, length in ((5, 512), (512, 100)):
            with pytest.raises(UsageError, match="are not whole sectors"):
                disk.discard(offset, length)


@pytest.mark.parametrize("polling", [False, True])
def test_a_device_that_needs_a_reset_is_noticed(make_served: Callable[..., Any], polling: bool) -> None:
    with make_served(policy=Policy.HOPEFUL).running() as served, open_disk(served.path, polling=polling) as disk:
        served.function.core.fail("a test says so")
        with pytest.raises(DeviceFailed, match="DEVICE_NEEDS_RESET"):
            disk.pread(512, 0)


def test_a_server_that_goes_is_noticed(make_served: Callable[..., Any]) -> None:
    with make_served().running() as served:
        disk = open_disk(served.path)
    with pytest.raises(Disconnected):
        disk.pread(512, 0)
    disk.close()


@pytest.mark.parametrize("polling", [False, True])
def test_a_device_that_returns_nothing_is_given_up(served: Any, monkeypatch: pytest.MonkeyPatch, polling: bool) -> None:
    with open_disk(served.path, polling=polling, timeout=0.2) as disk:
        monkeypatch.setattr(disk._requests, "kick", lambda: None)  # the device never sees it
        with pytest.raises(DeviceFailed, match="returned none of 1 requests"):
            disk.pread(512, 0)


def test_a_configuration_that_never_settles_is_given_up(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generations = itertools.count()
    get = VirtioPci._get

    def restless(device: VirtioPci, field: Any) -> int:
        return next(generations) if field is CommonCfg.config_generation else get(device, field)

    monkeypatch.setattr(VirtioPci, "_get", restless)
    monkeypatch.setattr("nodma.driver.virtio._CONFIG_SECONDS", 0.05)
    with pytest.raises(DeviceFailed, match="configuration changed at every reading"):
        open_disk(served.path)


@pytest.mark.parametrize("limits", [{"seg_max": 0}, {"size_max": 511}, {"num_queues": 0}])
def test_limits_that_no_disk_works_with_are_refused(make_served: Callable[..., Any], limits: dict[str, int]) -> None:
    served = make_served(queues=2)
    for name, value in limits.items():
        setattr(served.function.device.config, name, value)
    with served.running(), pytest.raises(ProbeError, match="no request fits"):
        open_disk(served.path)


def test_limits_without_measure_are_cut_to_what_fits(make_served: Callable[..., Any], image: Path) -> None:
    served = make_served(queues=2)
    config = served.function.device.config
    config.seg_max, config.size_max, config.num_queues = 2**32 - 1, 2**32 - 1, 65535
    with served.running(), open_disk(served.path, queues=2) as disk:
        assert disk.pread(DISK, 0) == image.read_bytes()


def test_nobody_listening_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the server running"):
        open_disk(tmp_path / "nothing")


def test_a_disk_in_use_is_a_clear_error(served: Any) -> None:
    with open_disk(served.path) as disk:
        with pytest.raises(Disconnected, match="may be serving another client"):
            open_disk(served.path)
        assert disk.pread(512, 0)


def test_the_write_cache_is_switched_at_both_ends(served: Any, make_served: Callable[..., Any], tmp_path: Path) -> None:
    device = served.function.device
    with open_disk(served.path) as disk:
        assert "CONFIG_WCE" in disk.feature_names
        assert disk.write_cache
        disk.write_cache = False
        assert not disk.write_cache
        disk.pwrite(b"durable" * 600, 4096)
        assert device._durable
        disk.write_cache = True
        assert disk.write_cache
        assert not device._durable
    with make_served(read_only=True, path=tmp_path / "read-only.sock").running() as other:  # noqa: SIM117
        with open_disk(other.path) as disk:
            assert disk.write_cache
            with pytest.raises(UsageError, match="CONFIG_WCE"):
                disk.write_cache = False


def test_an_image_that_grows_is_a_larger_disk(served: Any, image: Path) -> None:
    with open_disk(served.path) as disk:
        before = disk.size
        os.truncate(image, 2 * before)
        served.loop.call_soon_threadsafe(served.function.reload)
        end = time.monotonic() + 20
        while disk.reload_size() == before:
            assert time.monotonic() < end
        assert disk.size == 2 * before
        disk.pwrite(b"new", disk.size - 512)
        assert disk.pread(3, disk.size - 512) == b"new"
