"""Clients that break the protocol on purpose: the server answers or closes, and serves the next one."""

from __future__ import annotations

import gc
import os
import random
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodma.device import BlockDevice
from nodma.device.image import Image
from nodma.loop import Loop
from nodma.pci_function import PciFunction
from nodma.ring import RingLayout
from nodma.spec.vfio_user import Cmd, Header, MultiWrite, RegionAccess, Version, WriteMulti
from nodma.spec.virtio import Descriptor, Status
from nodma.spec.virtio_blk import BlkRequest
from nodma.spec.virtio_pci import CommonCfg
from nodma.vfio_user import Server
from nodma.vfio_user import descriptors as descriptors_module
from nodma.vfio_user import server as server_module
from nodma.vfio_user.commands import Commands
from nodma.vfio_user.connection import Connection
from nodma.vfio_user.listener import make_listener

POOL = 64 << 10
BASE = 0x10_0000_0000
HELLO = Header.codec.pack(1, Cmd.VERSION, 20, 0, 0) + Version.codec.pack(0, 0)


class Stepped:
    """A server that runs only when it is told to, in the test's own thread."""

    def __init__(self, directory: Path) -> None:
        self.image = directory / "disk.img"
        self.image.write_bytes(bytes(range(256)) * 256)
        self.contents = self.image.read_bytes()
        self.function = PciFunction(BlockDevice(Image(self.image), pool=POOL), pool=POOL)
        self.path = directory / "s"
        self.listener = make_listener(self.path)
        self.loop = Loop()
        self.server = Server(self.function, self.listener.socket, self.loop)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        sock.setblocking(False)
        return sock

    def settle(self, sock: socket.socket | None = None) -> bytes:
        """Let the server do all that it has to; gives what it sent to ``sock``."""
        got = b""
        for _ in range(1000):
            messages, clients = self.server.messages, self.server.clients
            busy = self.loop.step(0)
            part = b""
            if sock is not None:
                try:
                    part = sock.recv(1 << 20)
                except (BlockingIOError, ConnectionResetError):
                    part = b""
                got += part
            if not busy and not part and (messages, clients) == (self.server.messages, self.server.clients):
                return got
        raise AssertionError("the server never comes to rest")

    def serves(self) -> bool:
        """Whether the next client is served as if nothing had been."""
        with self.connect() as sock:
            sock.sendall(HELLO + Header.codec.pack(2, Cmd.REGION_READ, 32, 0, 0) + RegionAccess.codec.pack(0, 7, 4))
            answer = self.settle(sock)
        self.settle()
        return answer.endswith(b"\xf4\x1a\x42\x10") and not self.server.connected

    def close(self) -> None:
        self.server.close()
        self.loop.close()
        self.listener.remove()
        self.function.close()


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stepped]:
    stepped = Stepped(tmp_path_factory.mktemp("hostile"))
    yield stepped
    stepped.close()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(stepped: Stepped, count_descriptors: Any) -> Iterator[None]:
    assert stepped.serves()
    all_closed(stepped)
    before = count_descriptors()
    yield
    assert stepped.serves()
    all_closed(stepped)
    assert count_descriptors.settles(before)


def all_closed(stepped: Stepped) -> None:
    """Wait until what clients left is closed, where nobody else waits for it."""
    deadline = time.monotonic() + 60
    while stepped.server.descriptors.backlog:
        assert time.monotonic() < deadline
        stepped.settle()
    assert stepped.image.read_bytes() == stepped.contents


headers = st.builds(
    Header.codec.pack,
    st.integers(0, 65535),
    st.one_of(st.sampled_from(sorted(Cmd)), st.integers(0, 65535)),
    st.one_of(st.integers(0, 80), st.sampled_from([15, 16, 32, 1 << 20, (1 << 20) + 33, 2**31, 2**32 - 1])),
    st.one_of(st.just(0), st.integers(0, 63), st.integers(0, 2**32 - 1)),
    st.just(0),
)
honest = st.builds(
    lambda command, flags, body: Header.codec.pack(7, command, 16 + len(body), flags, 0) + body,
    st.one_of(st.sampled_from(sorted(Cmd)), st.integers(0, 100)),
    st.sampled_from([0, 0, 0, 16, 1]),
    st.one_of(
        st.binary(max_size=64),
        st.builds(RegionAccess.codec.pack, st.integers(0, 2**64 - 1), st.integers(0, 9), st.integers(0, 4096)),
        st.builds(
            lambda offset, data: RegionAccess.codec.pack(offset, 0, len(data)) + data,
            st.integers(0, 0x40),
            st.binary(max_size=8),
        ),
        st.builds(lambda *numbers: struct.pack("<5I", *numbers), *[st.integers(0, 40)] * 5),
        st.builds(lambda *numbers: struct.pack("<IIQQQ", *numbers), *[st.integers(0, 2**16)] * 5),
    ),
)


@settings(max_examples=150)
@given(
    pieces=st.lists(st.one_of(honest, honest, headers, st.binary(max_size=40)), max_size=30),
    hello=st.booleans(),
    cuts=st.lists(st.integers(1, 100), min_size=1),
    fds=st.integers(0, 20),
)
def test_messages_of_any_kind_in_any_pieces(
    stepped: Stepped, pieces: list[bytes], hello: bool, cuts: list[int], fds: int
) -> None:
    stream = (HELLO if hello else b"") + b"".join(pieces)
    with stepped.connect() as sock:
        at, turn = 0, 0
        try:
            while at < len(stream):
                part = stream[at : at + cuts[turn % len(cuts)]]
                if fds and turn % 3 == 1:
                    at += send_with_descriptors(sock, part, fds)
                else:
                    at += sock.send(part)
                turn += 1
                stepped.settle(sock)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server had enough
        stepped.settle(sock)
    stepped.settle()
    assert not stepped.server.connected


def send_with_descriptors(sock: socket.socket, data: bytes, count: int) -> int:
    fds = [os.memfd_create("stray") for _ in range(count)]
    try:
        return socket.send_fds(sock, [data], fds)
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("length", [*range(1, 48), 100])
def test_a_client_that_vanishes_in_the_middle_of_a_message(stepped: Stepped, length: int) -> None:
    stream = HELLO + Header.codec.pack(2, Cmd.REGION_WRITE, 132, 0, 0) + RegionAccess.codec.pack(0, 2, 100)
    with stepped.connect() as sock:
        sock.sendall(stream.ljust(200, b"x")[:length])
        stepped.settle()
    stepped.settle()
    assert not stepped.server.connected


def test_a_size_smaller_than_the_header_ends_the_connection(stepped: Stepped) -> None:
    with stepped.connect() as sock:
        sock.sendall(HELLO + Header.codec.pack(2, Cmd.DEVICE_RESET, 15, 0, 0))
        stepped.settle()
        assert not stepped.server.connected


def test_a_message_longer_than_any_is_refused_and_skipped(stepped: Stepped) -> None:
    size = 3 << 20
    with stepped.connect() as sock:
        sock.sendall(HELLO)
        stepped.settle(sock)
        sock.sendall(Header.codec.pack(2, Cmd.REGION_WRITE, size, 0, 0))
        answer = stepped.settle(sock)
        assert Header.codec.unpack(answer) == (2, Cmd.REGION_WRITE, 16, 0x21, 22)
        left = size - 16
        while left:
            left -= sock.send(b"z" * min(left, 60_000))
            stepped.settle()
        sock.sendall(Header.codec.pack(3, Cmd.DEVICE_RESET, 16, 0, 0))
        assert Header.codec.unpack(stepped.settle(sock)) == (3, Cmd.DEVICE_RESET, 16, 1, 0)
        assert len(stepped.server._connection._buffer) < 2 << 20  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [1 << 30, 200], ids=["skipped", "awaited"])
def test_descriptors_cannot_be_parked_piece_by_piece(stepped: Stepped, count_descriptors: Any, size: int) -> None:
    """Each piece of a message may bring as many as a message may; a client that goes on so is let go, with them."""
    all_closed(stepped)
    before = count_descriptors()
    with stepped.connect() as sock, Path(os.devnull).open() as nothing:
        sock.sendall(HELLO)
        stepped.settle(sock)
        sock.sendall(Header.codec.pack(2, Cmd.DMA_MAP, size, 0, 0)[: Header.size - 1])
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(40):
                socket.send_fds(sock, [b"\0"], [nothing.fileno()] * 16)
                stepped.settle()
                assert count_descriptors() < before + 128  # 96 wait to be closed at most, and a message has 32
        assert not stepped.server.connected
    all_closed(stepped)
    assert count_descriptors.settles(before)
    assert stepped.serves()


def test_clients_that_left_hold_no_memory(stepped: Stepped) -> None:
    for _ in range(20):
        assert stepped.serves()
    gc.collect()
    assert [one for one in gc.get_objects() if isinstance(one, Connection)] == []


def test_a_client_that_never_reads_costs_one_reply_and_one_buffer(stepped: Stepped) -> None:
    """100,000 messages, of which each wants a mebibyte back: what does not fit the socket is never made."""
    read = Header.codec.pack(9, Cmd.REGION_READ, 32, 0, 0) + RegionAccess.codec.pack(0, 2, POOL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent = 0
    with stepped.connect() as sock:
        sock.sendall(HELLO)
        stepped.settle()
        stream = read * 1000
        for _ in range(100):
            at = 0
            while at < len(stream):
                try:
                    at += sock.send(stream[at:])
                except BlockingIOError:
                    break  # the server takes no more while its replies are not read
                stepped.settle()
            sent += at // len(read)
        connection = stepped.server._connection
        assert connection
        assert connection.blocked
        assert sent < 100_000
        assert sum(len(message) for message, _ in connection._out) <= POOL + 32
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10  # KiB
    stepped.settle()


def test_a_client_that_reads_late_gets_every_reply(stepped: Stepped) -> None:
    count = 20_000
    with stepped.connect() as sock:
        sock.sendall(HELLO)
        stepped.settle(sock)
        stream = b"".join(Header.codec.pack(n & 0xFFFF, Cmd.DEVICE_RESET, 16, 0, 0) for n in range(count))
        at, got = 0, b""
        while at < len(stream):
            with suppress(BlockingIOError):
                at += sock.send(stream[at:])
            for _ in range(5):
                stepped.loop.step(0)
            if stepped.server._connection and stepped.server._connection.blocked:
                got += stepped.settle(sock)
        got += stepped.settle(sock)
    assert [Header.codec.unpack_from(got, 16 * n)[0] for n in range(count)] == [n & 0xFFFF for n in range(count)]
    stepped.settle()


def test_a_running_server_takes_messages_of_any_kind(served: Any) -> None:
    """As it does in life, where it stays with a client that speaks."""
    source = random.Random(11)
    for _ in range(40):
        stream = HELLO
        for serial in range(source.randrange(60)):
            size = source.choice([15, 16, 32, 32, 32, 36, 36, 40, 48, 1 << 20])
            flags = source.choice([0, 0, 0, 0, 16, 1, 2])
            stream += Header.codec.pack(serial, source.choice([9, 9, 10, 10, 13, 5, 8, 77]), size, flags, 0)
            stream += RegionAccess.codec.pack(source.choice([0, 8, 2**63]), source.choice([0, 2, 7, 9]), size & 15)
            stream += source.randbytes(source.randrange(9) if source.random() < 0.3 else max(0, size - 32) & 31)
        with served.connect() as sock, suppress(BrokenPipeError, ConnectionResetError):
            sock.settimeout(None)
            at = 0
            while at < len(stream):
                at += sock.send(stream[at : at + source.randrange(1, 200)])
                with suppress(BlockingIOError):
                    sock.recv(1 << 16, socket.MSG_DONTWAIT)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
    with served.connect() as sock:
        sock.sendall(HELLO)
        assert sock.recv(1000)[8] == 1  # a reply


def test_random_bytes_as_messages(stepped: Stepped) -> None:
    source = random.Random(4)
    for _ in range(200):
        with stepped.connect() as sock:
            with suppress(BrokenPipeError):
                sock.send((HELLO if source.random() < 0.7 else b"") + source.randbytes(source.randrange(3000)))
            stepped.settle(sock)
        stepped.settle()


def hostile_rings(source: random.Random, memory: memoryview, layout: RingLayout) -> None:
    """Fill a window with rings that are nearly good: most numbers are such as a driver may write."""
    memory[:] = source.randbytes(len(memory))
    for index in range(len(memory) // 16):
        good = source.random() < 0.9
        address = BASE + source.randrange(len(memory)) if good else source.getrandbits(64)
        length = source.choice([0, 1, 16, 32, 48, 512, 4096]) if good else source.getrandbits(32)
        flags = source.choice([0, 1, 1, 2, 2, 3, 3, 4]) if good else source.getrandbits(16)
        following = source.randrange(layout.size) if good else source.getrandbits(16)
        Descriptor.codec.pack_into(memory, 16 * index, address, length, flags, following)
    for _ in range(20):  # headers of block requests, also where no table will look for them
        BlkRequest.codec.pack_into(memory, 16 * source.randrange(1000), source.choice([0, 1, 4, 8, 11, 13]), 0, 3)
    heads = [source.randrange(layout.size) for _ in range(layout.size)]
    struct.pack_into(f"<HH{layout.size}H", memory, layout.avail, 0, source.choice([1, 5, 64]), *heads)


def serve_hostile_rings(stepped: Stepped, registers: Any, seed: int) -> None:
    """Rings of half-truths on a read-only disk: whatever they ask for, no byte of the image changes."""
    function = stepped.function
    driver = registers(function)
    driver.place()
    driver.negotiate()
    layout = RingLayout.packed_at(0, 64)
    function.device._read_only = True  # type: ignore[attr-defined]
    try:
        hostile_rings(random.Random(seed), function.window.bytes, layout)
        driver.enable(layout)
        driver.ready()
        driver.notify()
        for _ in range(20):
            function.service()
        assert stepped.image.read_bytes() == stepped.contents
        if driver.status & Status.DEVICE_NEEDS_RESET:
            assert function.core.reason
    finally:
        function.device._read_only = False  # type: ignore[attr-defined]
        function.reset()


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32))
def test_hostile_rings_never_touch_the_image_outside_a_valid_request(
    stepped: Stepped, registers: Any, seed: int
) -> None:
    serve_hostile_rings(stepped, registers, seed)


def test_the_hostile_rings_reach_the_device(stepped: Stepped, registers: Any) -> None:
    """Else the property above would hold of nothing; the seeds are fixed, and so are the counts."""
    counters = stepped.function.core.counters
    requests, resets = counters.requests, counters.needs_reset
    for seed in range(200):
        serve_hostile_rings(stepped, registers, seed)
    assert counters.requests - requests > 100
    assert counters.needs_reset - resets > 50


@pytest.mark.parametrize(
    "capabilities",
    [
        '[["max_data_xfer_size", -1000000000000000000000000]]',
        '[["max_data_xfer_size", 1.5]]',
        '["ab"]',
        '"text"',
        "17",
        "null",
        '{"max_data_xfer_size": -1}',
        '{"max_data_xfer_size": 1e999}',
        '{"max_data_xfer_size": -Infinity}',
        '{"max_data_xfer_size": NaN}',
        '{"max_data_xfer_size": true}',
        '{"max_data_xfer_size": "x"}',
        '{"max_data_xfer_size": ' + "9" * 5000 + "}",
        '{"max_msg_fds": -3}',
        '{"max_msg_fds": [1]}',
        '{"max_msg_fds": null}',
        '{"write_multiple": 1}',
        '{"other": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"other": "' + "x" * (16 << 10) + '"}',
    ],
    ids=range(19),
)
def test_capabilities_of_any_kind_end_that_client_alone(stepped: Stepped, capabilities: str) -> None:
    body = Version.codec.pack(0, 0) + f'{{"capabilities": {capabilities}}}'.encode() + b"\0"
    with stepped.connect() as sock:
        sock.sendall(Header.codec.pack(1, Cmd.VERSION, 16 + len(body), 0, 0) + body)
        answer = stepped.settle(sock)
        assert Header.codec.unpack(answer) == (1, Cmd.VERSION, 16, 0x21, 22)
        assert not stepped.server.connected


@pytest.mark.parametrize("number", [10**30, 2**64, 17])
def test_numbers_of_any_size_are_taken_for_what_they_mean(stepped: Stepped, number: int) -> None:
    text = f'{{"capabilities": {{"max_data_xfer_size": {number}, "max_msg_fds": {number}, "what": 1.5}}}}'
    body = Version.codec.pack(0, 0) + text.encode() + b"\0"
    read = Header.codec.pack(2, Cmd.REGION_READ, 32, 0, 0) + RegionAccess.codec.pack(0, 7, 4)
    with stepped.connect() as sock:
        sock.sendall(Header.codec.pack(1, Cmd.VERSION, 16 + len(body), 0, 0) + body + read)
        assert stepped.settle(sock).endswith(b"\xf4\x1a\x42\x10")


@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError, OverflowError, RecursionError])
def test_any_exception_ends_the_client_and_not_the_process(
    stepped: Stepped, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(_: object) -> None:
        raise error

    with stepped.connect() as sock:
        stepped.settle(sock)
        monkeypatch.setattr(stepped.server._commands, "answer", fail)
        sock.sendall(HELLO)
        stepped.settle(sock)
        assert not stepped.server.connected


def test_a_device_that_fails_at_its_work_costs_the_client(stepped: Stepped, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise MemoryError

    with stepped.connect() as sock:
        sock.sendall(HELLO)
        with monkeypatch.context() as patch:
            patch.setattr(stepped.function, "service", fail)
            stepped.settle(sock)
        assert not stepped.server.connected


def test_the_next_client_waits_until_the_device_has_forgotten_the_last(
    stepped: Stepped, monkeypatch: pytest.MonkeyPatch
) -> None:
    detach = stepped.function.detach
    calls: list[int] = []

    def fail_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(12, "Cannot allocate memory")
        detach()

    monkeypatch.setattr(server_module, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(stepped.function, "detach", fail_once)
    with stepped.connect() as sock:
        sock.sendall(HELLO)
        stepped.settle(sock)
    while len(calls) < 2:
        stepped.loop.step(1.0)
    assert stepped.serves()


def test_without_a_descriptor_for_it_a_client_waits_and_nothing_spins(
    stepped: Stepped, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted:
        def accept(self) -> None:
            raise OSError(24, "Too many open files")

    stepped.settle()
    with stepped.connect() as sock:
        with monkeypatch.context() as patch:
            patch.setattr(server_module, "_RETRY_SECONDS", 3600.0)
            patch.setattr(stepped.server, "_listener", Exhausted())
            assert stepped.loop.step(0)
            assert not stepped.loop.step(0)  # a client waits, and nobody looks
        stepped.server._accept_again()  # as the timer does
        sock.sendall(HELLO)
        stepped.settle(sock)
        assert stepped.server.connected


def test_half_a_message_keeps_no_memory_open(stepped: Stepped, count_descriptors: Any) -> None:
    with stepped.connect() as sock:
        sock.sendall(HELLO)
        stepped.settle(sock)
        before = count_descriptors()
        for command in (Cmd.DMA_MAP, Cmd.DEVICE_SET_IRQS):  # the second has a use for descriptors, but not for these
            message = Header.codec.pack(2, command, 16 + 32, 0, 0) + bytes(32)
            send_with_descriptors(sock, message[:20], 3)
            stepped.settle()
            assert count_descriptors.settles(before)
            sock.sendall(message[20:])
            assert Header.codec.unpack_from(stepped.settle(sock))[4] == 22


def test_a_message_has_a_deadline(stepped: Stepped, monkeypatch: pytest.MonkeyPatch, count_descriptors: Any) -> None:
    with stepped.connect() as sock:
        sock.sendall(HELLO)
        stepped.settle(sock)
        before = count_descriptors()
        eventfd = os.eventfd(0)
        socket.send_fds(sock, [Header.codec.pack(2, Cmd.DEVICE_SET_IRQS, 40, 0, 0)], [eventfd])
        os.close(eventfd)
        stepped.settle(sock)
        assert count_descriptors.settles(before + 1)  # it may be of use
        stepped.server._tick()
        sock.sendall(bytes(24) + bytes(1))  # the rest, and the beginning of another
        stepped.settle(sock)
        monkeypatch.setattr(server_module, "MESSAGE_SECONDS", 0.0)
        stepped.server._tick()
        assert stepped.server.connected  # another message, another time
        stepped.server._tick()
        assert not stepped.server.connected
    assert count_descriptors.settles(before - 2)  # both ends of the connection are closed, and the eventfd


def test_a_client_that_floods_is_served_in_turns(stepped: Stepped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others on the loop have theirs after each: a register access, or whatever else a client says."""
    read = Header.codec.pack(2, Cmd.REGION_READ, 32, 0, 0) + RegionAccess.codec.pack(0, 7, 4)
    ask = Header.codec.pack(2, Cmd.DEVICE_GET_INFO, 32, 0, 0) + struct.pack("<4I", 16, 0, 0, 0)
    monkeypatch.setattr(server_module, "TURN_SECONDS", 0.0)
    before = stepped.server.messages
    with stepped.connect() as sock:
        sock.sendall(HELLO + 50 * (read + ask))
        while (seen := stepped.server.messages) < before + 101:
            stepped.loop.step(1.0)
            assert stepped.server.messages <= seen + 2
        stepped.settle(sock)


def test_one_message_costs_one_pause(make_served: Any, registers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = make_served(queues=3)
    core = served.function.core
    pauses: list[int] = []
    pause = core._pause_threads
    driver = registers(served.function)
    driver.place(BASE)
    driver.negotiate()
    for index in range(3):
        driver.enable(RingLayout.packed_at(index << 14, 16), BASE, index)
    driver.ready()
    monkeypatch.setattr(core, "_pause_threads", lambda: (pauses.append(1), pause()))
    commands = Commands(served.function, served.server.guard)
    version = (0, Cmd.VERSION, 0, memoryview(Version.codec.pack(0, 0)), [], 0)
    assert commands.answer(version)

    def cost(command: int, payload: bytes) -> int:
        pauses.clear()
        answer = commands.answer((1, command, 0, memoryview(payload), [], 0))
        assert answer
        assert Header.codec.unpack_from(answer[0])[4] == 0
        return len(pauses)

    def multi(offset: int, region: int) -> bytes:
        return WriteMulti.codec.pack(1000) + 1000 * MultiWrite.codec.pack(offset, region, 2, 0)

    assert cost(Cmd.REGION_WRITE_MULTI, multi(CommonCfg.queue_select.offset, 0)) == 1
    assert cost(Cmd.REGION_WRITE_MULTI, multi(0x3000, 0)) == 0  # notifications pause nobody
    assert cost(Cmd.REGION_WRITE_MULTI, multi(0, 2)) == 0  # nor does the window
    table = RegionAccess.codec.pack(0x4000, 0, 64) + bytes(64)
    assert cost(Cmd.REGION_WRITE, table) == 1
    for flags in (1 | 1 << 3, 1 | 1 << 4, 1 | 1 << 5):  # all vectors masked, unmasked, triggered
        assert cost(Cmd.DEVICE_SET_IRQS, struct.pack("<5I", 20, flags, 2, 0, 4)) == 1
    served.close()


def test_a_client_that_is_gone_before_it_is_accepted_costs_nothing(
    stepped: Stepped, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        def accept(self) -> None:
            raise OSError(103, "Software caused connection abort")

    with stepped.connect() as sock:
        with monkeypatch.context() as patch:
            patch.setattr(stepped.server, "_listener", Gone())
            stepped.loop.step(0)
        sock.sendall(HELLO)
        stepped.settle(sock)
        assert stepped.server.connected


def test_a_client_that_cannot_be_taken_is_let_go(stepped: Stepped, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError

    for name in ("Connection", "Commands"):
        with monkeypatch.context() as patch, stepped.connect() as sock:
            patch.setattr(server_module, name, out_of_memory)
            stepped.settle()
            assert not stepped.server.connected
            sock.setblocking(True)
            assert sock.recv(1) == b""


def test_whatever_fails_once_a_second_costs_the_client(stepped: Stepped, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with stepped.connect() as sock:
        sock.sendall(HELLO)
        stepped.settle(sock)
        monkeypatch.setattr(stepped.function, "tick", fail)
        stepped.server._tick()
        assert not stepped.server.connected


def test_a_client_whose_descriptors_pile_up_is_let_go(stepped: Stepped, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are counted while nothing closes them, and while there are too many nobody is served."""
    with monkeypatch.context() as patch:
        patch.setattr(descriptors_module, "_CLONE", None)
        message = Header.codec.pack(2, Cmd.DMA_MAP, 16 + 32, 0, 0) + struct.pack("<IIQQQ", 32, 3, 0, 0, 4096)
        with stepped.connect() as sock, Path(os.devnull).open() as nothing:
            sock.sendall(HELLO)
            stepped.settle(sock)
            for _ in range(20):
                with suppress(BrokenPipeError):
                    socket.send_fds(sock, [message], [nothing.fileno()] * 16)
                stepped.settle(sock)
            assert not stepped.server.connected
        backlog = stepped.server.descriptors.backlog
        assert server_module.MAX_BACKLOG < backlog <= server_module.MAX_BACKLOG + 32
        with stepped.connect() as sock:
            stepped.settle()
            assert not stepped.server.connected
    while stepped.server.descriptors.backlog:
        stepped.server.descriptors.look_after()


def test_a_device_that_fails_at_the_end_ends_in_order(make_served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: float) -> None:
        raise ZeroDivisionError

    served = make_served()
    with served.connect() as sock:
        sock.sendall(HELLO)
        served.loop.step(1.0)
        monkeypatch.setattr(served.function, "finish", fail)
        served.server.finish(1.0)
        assert not served.server.connected
    served.close()
