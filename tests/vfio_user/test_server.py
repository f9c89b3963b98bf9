"""The server, message by message: what QEMU sends, and bad ones beside it."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nodma.spec.vfio_user import (
    Cmd,
    DeviceInfo,
    DmaMap,
    DmaUnmap,
    IrqInfo,
    IrqSet,
    IrqSetFlag,
    MultiWrite,
    RegionAccess,
    RegionInfo,
    RegionIoFds,
    Version,
    WriteMulti,
)
from nodma.spec.virtio_pci import CommonCfg
from nodma.vfio_user import server as server_module

EINVAL, ENOTSUP = errno.EINVAL, errno.ENOTSUP
NO_REPLY = 1 << 4


# VERSION


def test_version_agrees_to_what_was_proposed_and_no_more(connect: Any) -> None:
    assert connect().hello({"max_msg_fds": 8, "twin_socket": {"supported": True}}) == {"max_msg_fds": 16}


@pytest.mark.parametrize("data", [b"", b"{}\0", b'{"capabilities":{}}\0'])
def test_version_needs_no_capabilities(connect: Any, data: bytes) -> None:
    raw = connect()
    error, body, _ = raw.call(Cmd.VERSION, Version.codec.pack(0, 5) + data)
    assert (error, body[:4]) == (0, bytes(4))  # the minor version is ours
    assert json.loads(body[4:-1]) == {"capabilities": {}}
    assert raw.call(Cmd.DEVICE_RESET)[0] == 0


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        Version.codec.pack(1, 0),
        Version.codec.pack(0, 0) + b"{}",
        Version.codec.pack(0, 0) + b"nonsense\0",
        Version.codec.pack(0, 0) + b"[1]\0",
        Version.codec.pack(0, 0) + b'{"capabilities": 5}\0',
        Version.codec.pack(0, 0) + b'{"capabilities": {"max_msg_fds": -1}}\0',
        Version.codec.pack(0, 0) + b'{"capabilities": {"max_data_xfer_size": "x"}}\0',
        Version.codec.pack(0, 0) + b"\xff\xfe\0",
        Version.codec.pack(0, 0) + b"[" * 5000 + b"\0",
    ],
    ids=range(11),
)
def test_a_bad_version_is_answered_and_ends_the_connection(connect: Any, payload: bytes) -> None:
    raw = connect()
    assert raw.call(Cmd.VERSION, payload)[0] == EINVAL
    assert raw.ended()
    connect().hello()  # the next one is served


def test_a_command_before_version_is_answered_and_ends_the_connection(connect: Any) -> None:
    raw = connect()
    assert raw.call(Cmd.DEVICE_RESET)[0] == EINVAL
    assert raw.ended()


# DMA: nothing is kept


def dma_map(address: int, size: int, flags: int = 3, argsz: int = 32) -> bytes:
    return DmaMap.codec.pack(argsz, flags, 0, address, size)


def test_a_descriptor_of_guest_memory_is_closed_at_once(client: Any, served: Any) -> None:
    with_inode = os.memfd_create("guest-memory")
    os.ftruncate(with_inode, 1 << 20)
    inode = os.fstat(with_inode).st_ino
    assert client.call(Cmd.DMA_MAP, dma_map(0, 1 << 20), fds=(with_inode,))[0] == 0
    os.close(with_inode)  # the last reference, if the server kept none
    held = {entry.stat().st_ino for entry in Path("/proc/self/fd").iterdir() if entry.exists()}
    assert inode not in held
    assert "guest-memory" not in Path("/proc/self/maps").read_text()
    assert served.server.guard.descriptors_closed == 1
    assert served.server.guard.regions == {0: 1 << 20}


def test_descriptors_on_a_refused_or_foreign_message_are_closed_too(
    client: Any, served: Any, count_descriptors: Any
) -> None:
    before = count_descriptors()
    fd = os.memfd_create("stray")
    assert client.call(Cmd.DMA_MAP, b"short", fds=(fd, fd))[0] == EINVAL
    assert client.call(Cmd.DEVICE_RESET, fds=(fd,))[0] == 0
    assert client.call(77, fds=(fd,) * 20)[0] == EINVAL
    os.close(fd)
    assert count_descriptors.settles(before)
    assert served.server.guard.descriptors_closed == 2


def test_dma_regions_are_refused_as_the_protocol_has_it(client: Any, served: Any) -> None:
    assert client.call(Cmd.DMA_MAP, dma_map(0x1000, 0x1000))[0] == 0
    assert client.call(Cmd.DMA_MAP, dma_map(0x1800, 0x1000))[0] == errno.EEXIST
    assert client.call(Cmd.DMA_MAP, dma_map(0x8000, 0))[0] == EINVAL
    assert client.call(Cmd.DMA_MAP, dma_map(0x8000, 1, argsz=16))[0] == EINVAL
    assert client.call(Cmd.DMA_UNMAP, DmaUnmap.codec.pack(24, 0, 0x1000, 0x800))[0] == errno.ENOENT
    request = DmaUnmap.codec.pack(24, 0, 0x1000, 0x1000)
    assert client.call(Cmd.DMA_UNMAP, request)[:2] == (0, request)
    assert served.server.guard.regions == {}


# What there is


def test_device_info(client: Any) -> None:
    error, body, _ = client.call(Cmd.DEVICE_GET_INFO, DeviceInfo.codec.pack(16, 0, 0, 0))
    assert (error, DeviceInfo.codec.unpack(body)) == (0, (16, 3, 9, 5))
    assert client.call(Cmd.DEVICE_GET_INFO, DeviceInfo.codec.pack(15, 0, 0, 0))[0] == EINVAL
    assert client.call(Cmd.DEVICE_GET_INFO, b"x" * 15)[0] == EINVAL


def test_region_info(client: Any, served: Any) -> None:
    expected = {0: (32 << 10, 3), 2: (1 << 20, 7), 7: (4096, 3)}
    for index in range(9):
        error, body, fds = client.call(Cmd.DEVICE_GET_REGION_INFO, RegionInfo.codec.pack(32, 0, index, 0, 0, 0))
        argsz, flags, answered, cap_offset, size, offset = RegionInfo.codec.unpack(body)
        assert (error, argsz, answered, cap_offset, offset) == (0, 32, index, 0, 0)
        assert (size, flags) == expected.get(index, (0, 0))
        assert len(fds) == (1 if index == 2 else 0)
        for fd in fds:
            assert os.fstat(fd).st_ino == os.fstat(served.function.window.fd).st_ino
            os.close(fd)
    for index in (9, 2**32 - 1):
        assert client.call(Cmd.DEVICE_GET_REGION_INFO, RegionInfo.codec.pack(32, 0, index, 0, 0, 0))[0] == EINVAL
    assert client.call(Cmd.DEVICE_GET_REGION_INFO, RegionInfo.codec.pack(31, 0, 0, 0, 0, 0))[0] == EINVAL


def test_a_client_that_takes_no_descriptors_is_given_none(connect: Any) -> None:
    raw = connect()
    raw.hello({"max_msg_fds": 0})
    _, body, fds = raw.call(Cmd.DEVICE_GET_REGION_INFO, RegionInfo.codec.pack(32, 0, 2, 0, 0, 0))
    assert (RegionInfo.codec.unpack(body)[1], fds) == (3, [])


def test_irq_info(client: Any) -> None:
    found = {}
    for index in range(5):
        error, body, _ = client.call(Cmd.DEVICE_GET_IRQ_INFO, IrqInfo.codec.pack(16, 0, index, 0))
        assert error == 0
        _, flags, _, count = IrqInfo.codec.unpack(body)
        found[index] = (flags, count)
    assert found == {0: (7, 1), 1: (0, 0), 2: (3, 3), 3: (1, 1), 4: (0, 0)}
    assert client.call(Cmd.DEVICE_GET_IRQ_INFO, IrqInfo.codec.pack(16, 0, 5, 0))[0] == EINVAL


# Interrupts


def set_irqs(client: Any, flags: int, index: int, start: int, count: int, data: bytes = b"", fds: Any = ()) -> int:
    request = IrqSet.codec.pack(20 + len(data), flags, index, start, count) + data
    error: int = client.call(Cmd.DEVICE_SET_IRQS, request, fds=tuple(fds))[0]
    return error


NONE, BOOL, EVENTFD = IrqSetFlag.DATA_NONE, IrqSetFlag.DATA_BOOL, IrqSetFlag.DATA_EVENTFD
MASK, UNMASK, TRIGGER = IrqSetFlag.ACTION_MASK, IrqSetFlag.ACTION_UNMASK, IrqSetFlag.ACTION_TRIGGER


def test_eventfds_are_wired_masked_triggered_and_unwired(client: Any, served: Any, count_descriptors: Any) -> None:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    before = count_descriptors()
    assert set_irqs(client, EVENTFD | TRIGGER, 2, 0, 3, fds=fds) == 0
    assert count_descriptors.settles(before + 3)
    assert set_irqs(client, NONE | TRIGGER, 2, 1, 1) == 0
    assert os.eventfd_read(fds[1]) == 1
    assert set_irqs(client, NONE | MASK, 2, 0, 3) == 0
    assert set_irqs(client, BOOL | TRIGGER, 2, 0, 3, b"\1\0\1") == 0
    for fd in fds:
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
    assert set_irqs(client, EVENTFD | TRIGGER, 2, 1, 1) == 0  # without descriptors: unwire this one
    assert count_descriptors.settles(before + 2)
    assert set_irqs(client, NONE | TRIGGER, 2, 0, 0) == 0  # unwire all
    assert count_descriptors.settles(before)
    for fd in fds:
        os.close(fd)


def test_intx_and_the_error_interrupt_are_wired(client: Any, count_descriptors: Any) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    before = count_descriptors()
    for index in (0, 3):
        assert set_irqs(client, EVENTFD | TRIGGER, index, 0, 1, fds=[fd]) == 0
        assert set_irqs(client, EVENTFD | TRIGGER, index, 0, 1, fds=[fd]) == 0  # instead of the first
    assert count_descriptors.settles(before + 2)
    assert set_irqs(client, NONE | TRIGGER, 0, 0, 1) == 0
    assert os.eventfd_read(fd) == 1
    assert set_irqs(client, NONE | UNMASK, 0, 0, 1) == 0
    os.close(fd)


@pytest.mark.parametrize(
    ("flags", "index", "start", "count", "data", "fds"),
    [
        (EVENTFD | TRIGGER, 2, 2, 2, b"", 2),
        (EVENTFD | TRIGGER, 2, 2**32 - 1, 1, b"", 1),
        (EVENTFD | TRIGGER, 2, 0, 2, b"", 1),
        (EVENTFD | TRIGGER, 5, 0, 1, b"", 1),
        (EVENTFD | TRIGGER, 1, 0, 1, b"", 1),
        (EVENTFD | MASK, 2, 0, 1, b"", 1),
        (EVENTFD | TRIGGER | MASK, 2, 0, 1, b"", 1),
        (EVENTFD | BOOL | TRIGGER, 2, 0, 1, b"\1", 1),
        (TRIGGER, 2, 0, 1, b"", 0),
        (NONE, 2, 0, 1, b"", 0),
        (BOOL | TRIGGER, 2, 0, 3, b"\1", 0),
        (NONE | TRIGGER, 3, 0, 1, b"", 0),
        (NONE | TRIGGER | 1 << 6, 2, 0, 1, b"", 0),
    ],
)
def test_bad_interrupt_wirings_are_refused(
    client: Any, flags: int, index: int, start: int, count: int, data: bytes, fds: int,
    count_descriptors: Any,
) -> None:  # fmt: skip
    before = count_descriptors()
    made = [os.eventfd(0) for _ in range(fds)]
    assert set_irqs(client, flags, index, start, count, data, made) == EINVAL
    for fd in made:
        os.close(fd)
    assert count_descriptors.settles(before)


def test_only_eventfds_that_do_not_block_are_signalled(client: Any, count_descriptors: Any) -> None:
    """Else a client could hand over a pipe, or an eventfd that is full, and stop the device for good."""
    before = count_descriptors()
    read_end, write_end = os.pipe()
    assert set_irqs(client, EVENTFD | TRIGGER, 2, 0, 1, fds=[write_end]) == EINVAL
    os.close(read_end)
    os.close(write_end)
    full = os.eventfd(0)
    os.eventfd_write(full, 2**64 - 2)
    assert set_irqs(client, EVENTFD | TRIGGER, 2, 0, 1, fds=[full]) == 0
    assert set_irqs(client, NONE | TRIGGER, 2, 0, 1) == 0  # and the server goes on
    assert client.call(Cmd.DEVICE_RESET)[0] == 0
    assert set_irqs(client, NONE | TRIGGER, 2, 0, 0) == 0
    os.close(full)
    assert count_descriptors.settles(before)


# Regions


def access(region: int, offset: int, count: int, data: bytes = b"") -> bytes:
    return RegionAccess.codec.pack(offset, region, count) + data


def test_regions_are_read_and_written(client: Any) -> None:
    request = access(2, 100, 5)
    assert client.call(Cmd.REGION_WRITE, request + b"hello")[:2] == (0, request)
    assert client.call(Cmd.REGION_READ, request)[:2] == (0, request + b"hello")
    big = os.urandom(1 << 20)
    assert client.call(Cmd.REGION_WRITE, access(2, 0, 1 << 20, big))[0] == 0
    assert client.call(Cmd.REGION_READ, access(2, 0, 1 << 20))[1][16:] == big
    assert client.call(Cmd.REGION_READ, access(7, 0, 4))[1][16:] == b"\xf4\x1a\x42\x10"


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Cmd.REGION_READ, access(2, 1 << 20, 1)),
        (Cmd.REGION_READ, access(2, 2**64 - 1, 2)),
        (Cmd.REGION_READ, access(2, 0, (1 << 20) + 1)),
        (Cmd.REGION_READ, access(6, 0, 4)),
        (Cmd.REGION_READ, access(2**32 - 1, 0, 4)),
        (Cmd.REGION_READ, access(2, 0, 4)[:15]),
        (Cmd.REGION_READ, access(2, 0, 4, b"extra")),
        (Cmd.REGION_WRITE, access(2, 1 << 20, 1, b"x")),
        (Cmd.REGION_WRITE, access(2, 0, 4, b"xyz")),
        (Cmd.REGION_WRITE, access(2, 0, 2, b"xyz")),
        (Cmd.REGION_WRITE, b""),
        (Cmd.REGION_WRITE_MULTI, b""),
        (Cmd.REGION_WRITE_MULTI, WriteMulti.codec.pack(2) + MultiWrite.codec.pack(0, 2, 4, 0)),
        (Cmd.REGION_WRITE_MULTI, WriteMulti.codec.pack(2**63)),
        (Cmd.REGION_WRITE_MULTI, WriteMulti.codec.pack(1) + MultiWrite.codec.pack(0, 2, 9, 0)),
        (Cmd.REGION_WRITE_MULTI, WriteMulti.codec.pack(1) + MultiWrite.codec.pack(1 << 20, 2, 4, 0)),
    ],
)
def test_bad_accesses_are_refused_and_the_connection_goes_on(client: Any, command: Cmd, payload: bytes) -> None:
    assert client.call(command, payload)[0] == EINVAL
    assert client.call(Cmd.REGION_READ, access(2, 0, 1))[0] == 0


def test_several_writes_in_one_message(client: Any) -> None:
    writes = MultiWrite.codec.pack(10, 2, 2, 0x4241) + MultiWrite.codec.pack(12, 2, 8, 0x4A49484746454443)
    assert client.call(Cmd.REGION_WRITE_MULTI, WriteMulti.codec.pack(2) + writes)[:2] == (0, WriteMulti.codec.pack(2))
    assert client.call(Cmd.REGION_READ, access(2, 10, 10))[1][16:] == b"ABCDEFGHIJ"


def test_no_reply_is_honoured_for_good_and_bad(client: Any) -> None:
    client.send(Cmd.REGION_WRITE, access(2, 0, 4, b"data"), flags=NO_REPLY)
    client.send(Cmd.REGION_WRITE, access(99, 0, 4, b"data"), flags=NO_REPLY)
    client.send(200, b"", flags=NO_REPLY)
    assert client.call(Cmd.REGION_READ, access(2, 0, 4))[1][16:] == b"data"  # the next reply is to this


def test_reset(client: Any) -> None:
    status = access(0, CommonCfg.device_status.offset, 1)
    client.call(Cmd.REGION_WRITE, status + b"\3")
    assert client.call(Cmd.REGION_READ, status)[1][16:] == b"\3"
    assert client.call(Cmd.DEVICE_RESET)[0] == 0
    assert client.call(Cmd.REGION_READ, status)[1][16:] == b"\0"


@pytest.mark.parametrize("command", [0, 14, 19, 255, 65535, Cmd.VERSION])
def test_unknown_commands_are_refused(client: Any, command: int) -> None:
    assert client.call(command, b"whatever")[0] == EINVAL


@pytest.mark.parametrize(
    "command",
    [Cmd.DEVICE_FEATURE, Cmd.DMA_READ, Cmd.DMA_WRITE, Cmd.MIG_DATA_READ],
)
def test_commands_that_are_not_supported_say_so(client: Any, command: Cmd) -> None:
    assert client.call(command, bytes(32))[0] == ENOTSUP


def test_replies_to_nothing_are_ignored_and_strange_types_refused(client: Any) -> None:
    client.send(Cmd.REGION_READ, access(2, 0, 4), flags=1)
    assert client.call(Cmd.DEVICE_RESET, flags=0)[0] == 0
    client.send(Cmd.DEVICE_RESET, flags=2)
    (_, _, _, flags, error), _, _ = client.receive()
    assert (flags, error) == (0x21, EINVAL)


# Register accesses by eventfd


def io_fds(index: int, argsz: int = 4096, flags: int = 0) -> bytes:
    return RegionIoFds.codec.pack(argsz, flags, index, 0)


@pytest.fixture
def notified(served: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Eventfds of BAR 0: three queues, of which the last two share one."""
    eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(20)]
    parts = [(0x3000, 2, eventfds[0]), (0x3004, 2, eventfds[1]), (0x3008, 2, eventfds[1])]
    found = {0: parts, 2: [(4 * place, 0, fd) for place, fd in enumerate(eventfds)]}
    monkeypatch.setattr(served.function, "notifiers", lambda region: found.get(region, ()))
    yield eventfds
    for fd in eventfds:
        os.close(fd)


def test_a_region_without_eventfds_says_so(client: Any) -> None:
    for index in range(1, 9):
        answer = client.call(Cmd.DEVICE_GET_REGION_IO_FDS, io_fds(index))
        assert answer == (0, RegionIoFds.codec.pack(16, 0, index, 0), [])


def test_eventfds_of_a_region_are_handed_out(client: Any, notified: list[int]) -> None:
    error, body, fds = client.call(Cmd.DEVICE_GET_REGION_IO_FDS, io_fds(0, 16 + 3 * 40))
    assert (error, body[:16]) == (0, struct.pack("<4I", 16 + 3 * 40, 0, 0, 3))
    assert body[16:] == b"".join(
        struct.pack("<QQIIIIQ", offset, 2, place, 0, 0, 0, 0)
        for offset, place in ((0x3000, 0), (0x3004, 1), (0x3008, 1))
    )
    assert len(fds) == 2
    for theirs, ours in zip(fds, notified, strict=False):
        os.eventfd_write(theirs, 1)
        assert os.eventfd_read(ours) == 1
        os.close(theirs)


def test_what_does_not_fit_the_client_is_told_and_not_sent(client: Any, notified: list[int]) -> None:
    for argsz in (16, 16 + 3 * 40 - 1):
        answer = client.call(Cmd.DEVICE_GET_REGION_IO_FDS, io_fds(0, argsz))
        assert answer == (0, struct.pack("<4I", 16 + 3 * 40, 0, 0, 3), [])


@pytest.mark.parametrize(("named", "most"), [(0, 0), (1, 1), (5, 5), (100, 16)])
def test_no_more_eventfds_than_a_message_carries(connect: Any, notified: list[int], named: int, most: int) -> None:
    raw = connect()
    raw.hello({"max_msg_fds": named})
    error, body, fds = raw.call(Cmd.DEVICE_GET_REGION_IO_FDS, io_fds(2))
    assert (error, RegionIoFds.codec.unpack_from(body)[3], len(fds)) == (0, most, most)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    "payload",
    [b"", io_fds(0)[:15], io_fds(0, argsz=15), io_fds(9), io_fds(2**32 - 1), io_fds(0, flags=1)],
    ids=range(6),
)
def test_bad_questions_for_eventfds_are_refused(client: Any, notified: list[int], payload: bytes) -> None:
    assert client.call(Cmd.DEVICE_GET_REGION_IO_FDS, payload) == (EINVAL, b"", [])


# Clients come and go


def test_a_second_client_is_turned_away_and_the_first_goes_on(client: Any, connect: Any) -> None:
    second = connect()
    assert second.ended()
    assert client.call(Cmd.DEVICE_RESET)[0] == 0


def test_a_client_that_never_pauses_keeps_nobody_else_waiting(client: Any, connect: Any, served: Any) -> None:
    second = connect()
    second.sock.setblocking(False)
    turned_away = False
    while not turned_away:
        assert client.call(Cmd.REGION_READ, access(2, 0, 4))[0] == 0
        with suppress(BlockingIOError):
            turned_away = second.sock.recv(1) == b""
    assert served.server.clients == 1


def test_a_server_stops_while_a_client_speaks(client: Any, served: Any) -> None:
    def speak() -> None:
        try:
            while True:
                client.call(Cmd.REGION_READ, access(2, 0, 4))
        except (EOFError, OSError):
            pass

    speaker = threading.Thread(target=speak)
    speaker.start()
    served.loop.stop()
    speaker.join(timeout=30)
    assert not speaker.is_alive()


def test_the_next_client_gets_a_fresh_window_and_a_reset_device(
    client: Any, connect: Any, served: Any, count_descriptors: Any
) -> None:
    client.call(Cmd.REGION_WRITE, access(2, 0, 6, b"secret"))
    client.call(Cmd.REGION_WRITE, access(0, CommonCfg.device_status.offset, 1, b"\3"))
    client.call(Cmd.DMA_MAP, dma_map(0, 4096))
    inode = os.fstat(served.function.window.fd).st_ino
    client.close()
    second = connect()
    second.hello()
    assert second.call(Cmd.REGION_READ, access(2, 0, 6))[1][16:] == bytes(6)
    assert second.call(Cmd.REGION_READ, access(0, CommonCfg.device_status.offset, 1))[1][16:] == b"\0"
    assert second.call(Cmd.DMA_MAP, dma_map(0, 4096))[0] == 0
    assert os.fstat(served.function.window.fd).st_ino != inode


def test_a_client_that_says_nothing_is_let_go(make_served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_SECONDS", 0.0)
    served = make_served()
    silent = served.connect()
    served.loop.step()  # accepts it, and its time is over at once
    assert not served.server.connected
    assert silent.recv(1) == b""
    silent.close()
    served.close()


def test_a_function_that_fails_in_a_register_answers_and_goes_on(client: Any, served: Any, caplog: Any) -> None:
    def fail(offset: int, data: bytes) -> None:
        raise ZeroDivisionError

    served.function._writers[0] = fail
    assert client.call(Cmd.REGION_WRITE, access(0, 0x2000, 1, b"x"))[0] == errno.EIO
    assert "ZeroDivisionError" in caplog.text
    assert client.call(Cmd.DEVICE_RESET)[0] == 0
