"""The device's end: every number that a hostile driver can write is caught where it enters."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.builds import load_interpreted
from nodma.errors import BadRing, OutsideAddress
from nodma.ring import RingLayout
from nodma.spec.virtio import DescFlag, Descriptor
from nodma.window import Window

SIZE = 64 << 10
BASE = 0x10_0000_0000
N = 8
LAYOUT = RingLayout.packed_at(0, N)
DATA = 0x4000
TABLE = 0x2000
NEXT, WRITE, INDIRECT = DescFlag.NEXT, DescFlag.WRITE, DescFlag.INDIRECT


class Ring:
    """A device's end, and a driver's pen."""

    def __init__(self, module: ModuleType, window: Window, **options: Any) -> None:
        self.window = window
        defaults = {"base": BASE, "first": 0, "limit": SIZE, "indirect": True, "event_idx": True}
        self.ring = module.DeviceRing(window, LAYOUT, **(defaults | options))
        self.idx = 0

    def desc(self, index: int, addr: int, length: int, flags: int = 0, following: int = 0, table: int = 0) -> None:
        Descriptor.codec.pack_into(self.window.bytes, table + 16 * index, addr, length, flags, following)

    def offer(self, *heads: int) -> None:
        for head in heads:
            struct.pack_into("<H", self.window.bytes, LAYOUT.avail + 4 + 2 * (self.idx % N), head)
            self.idx = (self.idx + 1) & 0xFFFF
        struct.pack_into("<H", self.window.bytes, LAYOUT.avail + 2, self.idx)


@pytest.fixture
def window() -> Iterator[Window]:
    with Window.create(SIZE) as window:
        yield window


@pytest.fixture
def ring(device_end: ModuleType, window: Window) -> Ring:
    return Ring(device_end, window)


def test_a_chain_across_the_whole_ring(ring: Ring) -> None:
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    for at, index in enumerate(order):
        flags = (WRITE if at >= 4 else 0) | (NEXT if at < N - 1 else 0)
        ring.desc(index, BASE + DATA + 100 * at, 100 - at, flags, order[(at + 1) % N])
    ring.window.view(DATA, 100)[:] = b"r" * 100
    ring.offer(3)
    (request,) = ring.ring.pop(16)
    assert request.head == 3
    assert [len(part) for part in request.readable] == [100, 99, 98, 97]
    assert [len(part) for part in request.writable] == [96, 95, 94, 93]
    assert request.read(100) == b"r" * 100
    assert ring.ring.pop(16) == []


def test_direct_descriptors_then_an_indirect_table_at_any_address(ring: Ring) -> None:
    table = TABLE + 3  # no alignment is demanded of a table
    ring.desc(0, BASE + DATA, 5, NEXT, 1)
    ring.desc(1, BASE + table, 48, INDIRECT | WRITE)  # WRITE on a table is ignored (2.7.5.3.2)
    ring.desc(0, BASE + DATA + 10, 6, NEXT, 2, table=table)
    ring.desc(2, BASE + DATA + 20, 7, WRITE, table=table)
    ring.offer(0)
    (request,) = ring.ring.pop(16)
    assert ([len(part) for part in request.readable], [len(part) for part in request.writable]) == ([5, 6], [7])


def test_indexes_wrap_around_at_65536(ring: Ring) -> None:
    ring.desc(0, BASE + DATA, 8, WRITE)
    for lap in range(65536 // N + 2):
        ring.offer(*[0] * N)
        batch = ring.ring.pop(N)
        assert len(batch) == N, lap
        ring.ring.push(batch)
        ring.ring.publish()
    used_flags, used_idx = struct.unpack_from("<HH", ring.window.bytes, LAYOUT.used)
    assert (used_flags, used_idx) == (0, 2 * N)


def test_used_entries_tell_head_and_length(ring: Ring) -> None:
    ring.desc(5, BASE + DATA, 64, WRITE)
    ring.offer(5)
    (request,) = ring.ring.pop(1)
    assert request.write(b"abc") == 3
    assert request.write(b"d" * 100) == 61
    ring.ring.push([request])
    ring.ring.publish()
    assert struct.unpack_from("<II", ring.window.bytes, LAYOUT.used + 4) == (5, 64)
    assert ring.window.view(DATA, 5).tobytes() == b"abcdd"


def bad_head(ring: Ring) -> None:
    ring.offer(N)


def bad_next(ring: Ring) -> None:
    ring.desc(0, BASE + DATA, 1, NEXT, N)
    ring.offer(0)


def address_below(ring: Ring) -> None:
    ring.desc(0, BASE - 1, 8)
    ring.offer(0)


def address_above(ring: Ring) -> None:
    ring.desc(0, BASE + SIZE, 1)
    ring.offer(0)


def address_straddles_the_end(ring: Ring) -> None:
    ring.desc(0, BASE + SIZE - 4, 5)
    ring.offer(0)


def address_and_length_overflow(ring: Ring) -> None:
    ring.desc(0, 2**64 - 16, 64)
    ring.offer(0)


def address_far_away(ring: Ring) -> None:
    ring.desc(0, (BASE + 2**63) % 2**64, 1)
    ring.offer(0)


def longest_length(ring: Ring) -> None:
    ring.desc(0, BASE, 2**32 - 1)
    ring.offer(0)


def loop(ring: Ring) -> None:
    ring.desc(0, BASE + DATA, 1, NEXT, 1)
    ring.desc(1, BASE + DATA, 1, NEXT, 0)
    ring.offer(0)


def loop_in_a_table(ring: Ring) -> None:
    ring.desc(0, BASE + TABLE, 16, INDIRECT)
    ring.desc(0, BASE + DATA, 0, NEXT, 0, table=TABLE)
    ring.offer(0)


def indirect_in_indirect(ring: Ring) -> None:
    ring.desc(0, BASE + TABLE, 16, INDIRECT)
    ring.desc(0, BASE + TABLE, 16, INDIRECT, table=TABLE)
    ring.offer(0)


def indirect_and_next(ring: Ring) -> None:
    ring.desc(0, BASE + TABLE, 16, INDIRECT | NEXT, 1)
    ring.offer(0)


def empty_table(ring: Ring) -> None:
    ring.desc(0, BASE + TABLE, 0, INDIRECT)
    ring.offer(0)


def odd_table(ring: Ring) -> None:
    ring.desc(0, BASE + TABLE, 24, INDIRECT)
    ring.offer(0)


def table_outside(ring: Ring) -> None:
    ring.desc(0, BASE + SIZE - 8, 16, INDIRECT)
    ring.offer(0)


def next_outside_the_table(ring: Ring) -> None:
    ring.desc(0, BASE + TABLE, 32, INDIRECT)
    ring.desc(0, BASE + DATA, 1, NEXT, 2, table=TABLE)
    ring.offer(0)


def readable_behind_writable(ring: Ring) -> None:
    ring.desc(0, BASE + DATA, 1, NEXT | WRITE, 1)
    ring.desc(1, BASE + DATA, 1)
    ring.offer(0)


def available_index_too_far(ring: Ring) -> None:
    ring.desc(0, BASE + DATA, 1)
    struct.pack_into("<H", ring.window.bytes, LAYOUT.avail + 2, N + 1)


HOSTILE = {
    bad_head: "descriptor 8 of a table of 8, in the chain of head 8",
    bad_next: "descriptor 8 of a table of 8, in the chain of head 0",
    address_below: "buffer of 8 bytes at 0xfffffffff .* is outside the window",
    address_above: "buffer of 1 bytes at 0x1000010000 .* is outside the window",
    address_straddles_the_end: "buffer of 5 bytes at 0x100000fffc .* is outside the window",
    address_and_length_overflow: "buffer of 64 bytes at 0xfffffffffffffff0 .* is outside the window",
    address_far_away: "buffer of 1 bytes at 0x8000001000000000 .* is outside the window",
    longest_length: "buffer of 4294967295 bytes .* is outside the window",
    loop: "has a loop, or more descriptors than the device takes",
    loop_in_a_table: "has a loop, or more descriptors than the device takes",
    indirect_in_indirect: "an indirect table inside an indirect table",
    indirect_and_next: "both indirect and continued",
    empty_table: "an indirect table of 0 bytes",
    odd_table: "an indirect table of 24 bytes, not a multiple of 16",
    table_outside: "indirect table of 16 bytes .* is outside the window",
    next_outside_the_table: "descriptor 2 of a table of 2",
    readable_behind_writable: "a readable part after a writable one",
    available_index_too_far: "the available index is 9 ahead, the queue has 8 entries",
}


@pytest.mark.parametrize("write", HOSTILE, ids=lambda write: write.__name__)
def test_hostile_numbers_are_refused_with_a_reason(ring: Ring, write: Any) -> None:
    write(ring)
    with pytest.raises(BadRing, match=HOSTILE[write]) as refused:
        ring.ring.pop(16)
    assert isinstance(refused.value, OutsideAddress) == ("outside the window" in HOSTILE[write])
    if write is not available_index_too_far:
        with pytest.raises(BadRing, match=HOSTILE[write]):  # and for good
            ring.ring.pop(16)


def test_an_indirect_table_that_was_not_negotiated_is_refused(device_end: ModuleType, window: Window) -> None:
    ring = Ring(device_end, window, indirect=False)
    ring.desc(0, BASE + TABLE, 16, INDIRECT)
    ring.offer(0)
    with pytest.raises(BadRing, match="is indirect, which was not negotiated"):
        ring.ring.pop(1)


def test_more_than_4_gib_in_one_chain_are_refused(device_end: ModuleType) -> None:
    with Window.create(8 << 20) as window:
        ring = Ring(device_end, window, limit=8 << 20)
        ring.desc(0, BASE + TABLE, 16 * 520, INDIRECT)
        for index in range(520):
            flags = NEXT if index < 519 else 0
            ring.desc(index, BASE, 8 << 20, flags, index + 1 if flags else 0, table=TABLE)
        ring.offer(0)
        with pytest.raises(BadRing, match=r"more than 2\^32 - 1"):
            ring.ring.pop(1)


def test_requests_before_a_bad_one_are_given_out(ring: Ring) -> None:
    ring.desc(0, BASE + DATA, 8, WRITE)
    ring.desc(1, 0, 8)
    ring.offer(0, 0, 1, 0)
    assert [request.head for request in ring.ring.pop(16)] == [0, 0]
    with pytest.raises(OutsideAddress) as refused:
        ring.ring.pop(16)
    assert (refused.value.address, refused.value.length) == (0, 8)


def test_a_region_may_be_less_than_the_window(device_end: ModuleType, window: Window) -> None:
    ring = Ring(device_end, window, first=0, limit=SIZE - 4096)
    ring.desc(0, BASE + SIZE - 4096, 1)
    ring.offer(0)
    with pytest.raises(OutsideAddress):
        ring.ring.pop(1)


def test_addresses_follow_the_window(ring: Ring) -> None:
    ring.ring.rebase(2 * BASE)
    ring.desc(0, 2 * BASE + DATA, 8, WRITE)
    ring.desc(1, BASE + DATA, 8, WRITE)
    ring.offer(0, 1)
    assert len(ring.ring.pop(16)) == 1
    with pytest.raises(OutsideAddress):
        ring.ring.pop(16)


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        (RingLayout(7, 0, 0x100, 0x200), "a queue of 7 entries"),
        (RingLayout(0, 0, 0x100, 0x200), "a queue of 0 entries"),
        (RingLayout(65536, 0, 0x100, 0x200), "a queue of 65536 entries"),
        (RingLayout(8, 8, 0x100, 0x200), "descriptor table at 0x1000000008 is not aligned to 16"),
        (RingLayout(8, 0, 0x101, 0x200), "available ring at 0x1000000101 is not aligned to 2"),
        (RingLayout(8, 0, 0x100, 0x202), "used ring at 0x1000000202 is not aligned to 4"),
        (RingLayout(8, -16, 0x100, 0x200), "descriptor table of 128 bytes at 0xffffffff0 is outside"),
        (RingLayout(8, 0, SIZE - 20, 0x200), "available ring of 22 bytes at 0x100000ffec is outside"),
        (RingLayout(8, 0, 0x100, SIZE), "used ring of 70 bytes at 0x1000010000 is outside"),
    ],
)
def test_a_queue_that_cannot_be_is_refused(device_end: ModuleType, window: Window, layout: Any, why: str) -> None:
    with pytest.raises(BadRing, match=why):
        device_end.DeviceRing(window, layout, base=BASE, first=0, limit=SIZE, indirect=True, event_idx=True)


# Limits, to the last one that is allowed


def test_a_chain_may_have_4_gib_less_one_byte(device_end: ModuleType) -> None:
    """And one byte more is too much (2.7.5.2)."""
    piece = 8 << 20
    with Window.create(piece) as window:
        for last, good in ((piece - 1, True), (piece, False)):
            ring = Ring(device_end, window, limit=piece)
            ring.desc(0, BASE + TABLE, 16 * 512, INDIRECT)
            for index in range(512):
                flags = NEXT if index < 511 else 0
                ring.desc(index, BASE, piece if flags else last, flags, index + 1 if flags else 0, table=TABLE)
            ring.offer(0)
            if good:
                (request,) = ring.ring.pop(1)
                assert sum(len(part) for part in request.readable) == 2**32 - 1
            else:
                with pytest.raises(BadRing, match=r"4294967296 bytes, more than 2\^32 - 1"):
                    ring.ring.pop(1)


def test_a_chain_of_1024_parts_is_taken_and_of_1025_not(device_end: ModuleType, window: Window) -> None:
    """What one preadv(2) takes, and what fits a batch."""
    for parts in (device_end.CHAIN_LIMIT - 1, device_end.CHAIN_LIMIT):
        ring = Ring(device_end, window)
        ring.desc(0, BASE + TABLE, 16 * parts, INDIRECT)
        for index in range(parts):
            last = index == parts - 1
            ring.desc(index, BASE + DATA, 1, 0 if last else NEXT, 0 if last else index + 1, table=TABLE)
        ring.offer(0)
        if parts < device_end.CHAIN_LIMIT:  # the indirect descriptor counts
            (request,) = ring.ring.pop(1)
            assert len(request.readable) == parts
        else:
            with pytest.raises(BadRing, match="more descriptors than the device takes"):
                ring.ring.pop(1)


def test_chains_that_do_not_fit_a_batch_together_come_in_the_next(device_end: ModuleType, window: Window) -> None:
    """Their parts are never written beyond its end."""
    ring = Ring(device_end, window)
    for head in range(3):
        table = TABLE + 0x2000 * head
        ring.desc(head, BASE + table, 16 * 500, INDIRECT)
        for index in range(500):
            flags, following = (NEXT, index + 1) if index < 499 else (0, 0)
            ring.desc(index, BASE + 0xC000 + head, 1, flags, following, table=table)
    ring.offer(0, 1, 2)
    batch = ring.ring.make_batch(8)
    taken = []
    while count := ring.ring.fetch_chains(batch, 8):
        taken.append([batch.heads[chain] for chain in range(count)])
        assert [batch.begins[chain + 1] for chain in range(count)] == [500 * (chain + 1) for chain in range(count)]
    assert taken == [[0, 1], [2]]
    assert batch.parts == device_end.CHAIN_LIMIT


def test_a_batch_takes_no_more_chains_than_asked_for_or_than_it_has_room_for(ring: Ring) -> None:
    ring.desc(0, BASE + DATA, 8, WRITE)
    ring.offer(*[0] * N)
    batch = ring.ring.make_batch(3)
    assert [ring.ring.fetch_chains(batch, most) for most in (2, 8, 8, 8)] == [2, 3, 3, 0]


def test_a_whole_queue_may_be_available_at_once(ring: Ring) -> None:
    ring.desc(0, BASE + DATA, 8, WRITE)
    ring.offer(*[0] * N)
    assert ring.ring.available() == N
    assert len(ring.ring.pop(16)) == N
    assert ring.ring.available() == 0


@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_part_may_end_where_the_region_does(device_end: ModuleType, window: Window, length: int) -> None:
    ring = Ring(device_end, window, limit=SIZE - 4096)
    ring.desc(0, BASE + SIZE - 4096 - length, length)
    ring.desc(1, BASE + SIZE - 4096 - length, length + 1)
    ring.offer(0, 1)
    (request,) = ring.ring.pop(2)
    assert [len(part) for part in request.readable] == [length]
    with pytest.raises(OutsideAddress, match=r"outside the window \[0x1000000000, 0x100000f000\)"):
        ring.ring.pop(1)


# Suppression (2.7.7, 2.7.8, 2.7.10)


def used_event(ring: Ring, event: int) -> None:
    struct.pack_into("<H", ring.window.bytes, LAYOUT.avail + 4 + 2 * N, event & 0xFFFF)


@pytest.mark.parametrize("start", [0, 65533], ids=["first lap", "where the index wraps"])
def test_the_driver_is_interrupted_for_the_entry_that_it_named_and_no_other(ring: Ring, start: int) -> None:
    """Whatever is published at once, an interrupt is wanted just if used_event is among it (2.7.7.2)."""
    for _ in range(start):
        ring.ring.add_used(0, 0)
    ring.ring.publish()
    at = start
    for count in (1, 2, 3, 5):
        for event in range(-3, 8):
            used_event(ring, at + event)
            for _ in range(count):
                ring.ring.add_used(0, 0)
            assert ring.ring.publish() == (0 <= event < count), (count, event)
            at += count
    used_event(ring, at)
    assert not ring.ring.publish(), "nothing was published"


def test_without_event_idx_the_drivers_flag_decides(device_end: ModuleType, window: Window) -> None:
    ring = Ring(device_end, window, event_idx=False)
    for flag, wanted in ((0, True), (1, False), (0xFFFE, True)):
        struct.pack_into("<H", window.bytes, LAYOUT.avail, flag)
        ring.ring.add_used(0, 0)
        assert ring.ring.publish() == wanted
    assert not ring.ring.publish()


@pytest.mark.parametrize("event_idx", [False, True])
def test_arming_asks_for_the_next_notification_and_sees_what_came_before(
    device_end: ModuleType, window: Window, event_idx: bool
) -> None:
    ring = Ring(device_end, window, event_idx=event_idx)
    ring.desc(0, BASE + DATA, 8, WRITE)
    flags, event = LAYOUT.used, LAYOUT.used + 4 + 8 * N
    ring.ring.disarm()
    assert struct.unpack_from("<H", window.bytes, flags)[0] == (0 if event_idx else 1)
    assert not ring.ring.arm()
    assert struct.unpack_from("<H", window.bytes, flags)[0] == 0
    ring.offer(0, 0)
    assert ring.ring.pending()
    assert ring.ring.arm()
    ring.ring.pop(1)
    assert ring.ring.arm()
    if event_idx:
        assert struct.unpack_from("<H", window.bytes, event)[0] == 1
    ring.ring.pop(1)
    assert not ring.ring.pending()
    assert not ring.ring.arm()
    if event_idx:
        assert struct.unpack_from("<H", window.bytes, event)[0] == 2


# Random memory


def outcome(module: ModuleType, memory: bytes, options: dict[str, bool]) -> list[object]:
    """All that a device's end makes of a ring's memory: its requests, by offsets, and its refusal."""
    with Window.create(SIZE) as window:
        window.bytes[: len(memory)] = memory
        seen: list[object] = []
        ring = module.DeviceRing(window, LAYOUT, base=BASE, first=0, limit=SIZE, **options)
        try:
            while batch := ring.pop(3):
                for request in batch:
                    parts = [
                        [(place(window, part), len(part)) for part in group]
                        for group in (request.readable, request.writable)
                    ]
                    seen.append((request.head, parts))
                ring.push(batch)
                seen.append(ring.publish())
                if len(seen) > 64:
                    break
            seen.append(ring.arm())
        except BadRing as error:
            seen.append((type(error).__name__, str(error)))
        seen.append(window.bytes[LAYOUT.used : LAYOUT.end].tobytes())
        return seen


def place(window: Window, part: memoryview) -> int:
    """The offset of a view in its window; -1 for an empty one, which is nowhere."""
    if not len(part):
        return -1
    start = ctypes.addressof(ctypes.c_char.from_buffer(window.bytes))
    at = ctypes.addressof(ctypes.c_char.from_buffer(part)) - start
    assert at >= 0
    assert at + len(part) <= SIZE
    return at


addresses = st.one_of(
    st.integers(BASE, BASE + 0x3000),
    st.sampled_from([0, BASE - 1, BASE + SIZE - 1, BASE + SIZE, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
lengths = st.one_of(st.sampled_from([0, 1, 16, 32, 48, 4096, SIZE, 2**32 - 1]), st.integers(0, 200))
descriptors = st.tuples(addresses, lengths, st.integers(0, 7), st.integers(0, N))


@given(
    table=st.lists(descriptors, min_size=N, max_size=N),
    inner=st.lists(descriptors, min_size=4, max_size=4),
    heads=st.lists(st.integers(0, N), min_size=N, max_size=N),
    ahead=st.integers(0, N + 1),
    used_event=st.integers(0, 65535),
    options=st.fixed_dictionaries({"indirect": st.booleans(), "event_idx": st.booleans()}),
)
def test_both_builds_make_the_same_of_any_ring(
    table: list[Any], inner: list[Any], heads: list[int], ahead: int, used_event: int, options: dict[str, bool]
) -> None:
    memory = bytearray(0x3000)
    for index, (addr, length, flags, following) in enumerate(table):
        Descriptor.codec.pack_into(memory, 16 * index, addr, length, flags, following)
    for index, (addr, length, flags, following) in enumerate(inner):
        Descriptor.codec.pack_into(memory, TABLE + 16 * index, addr, length, flags, following)
    struct.pack_into(f"<HH{N}HH", memory, LAYOUT.avail, 0, ahead, *heads, used_event)
    both_agree(bytes(memory), options)


@given(st.binary(min_size=LAYOUT.end, max_size=LAYOUT.end))
def test_both_builds_make_the_same_of_noise(memory: bytes) -> None:
    both_agree(memory, {"indirect": True, "event_idx": True})


def both_agree(memory: bytes, options: dict[str, bool]) -> None:
    """The interpreted build is the oracle; it gives views of the window alone (see place), or refuses."""
    import nodma.ring.device_end as built

    assert outcome(load_interpreted("nodma.ring.device_end"), memory, options) == outcome(built, memory, options)


# Requests


def test_reading_takes_bytes_whatever_the_framing(device_end: ModuleType) -> None:
    data = bytes(range(60))
    for cut in range(1, 60):
        parts = [memoryview(bytearray(data[:cut])), memoryview(bytearray(data[cut:]))]
        request = device_end.Request(0, parts, [])
        assert request.read(16) == data[:16]
        assert request.read(20) == data[16:36]
        assert request.read() == data[36:]
        assert request.read(5) == b""


def test_the_tail_comes_off_the_last_part(device_end: ModuleType) -> None:
    last = memoryview(bytearray(b"abc"))
    request = device_end.Request(0, [], [memoryview(bytearray(4)), last])
    assert request.take_tail(4) is None
    assert bytes(request.take_tail(1)) == b"c"
    assert bytes(request.take_tail(2)) == b"ab"
    assert [len(part) for part in request.writable] == [4]
    assert device_end.Request(0, [], []).take_tail(1) is None


def test_the_tail_of_several_parts_is_the_last_ones(device_end: ModuleType) -> None:
    parts = [memoryview(bytearray(text)) for text in (b"first", b"second", b"third")]
    request = device_end.Request(0, [], parts)
    assert bytes(request.take_tail(2)) == b"rd"
    assert [bytes(part) for part in request.writable] == [b"first", b"second", b"thi"]
    assert bytes(request.take_tail(3)) == b"thi"
    assert [bytes(part) for part in request.writable] == [b"first", b"second"]


def test_writing_goes_on_in_the_next_part_and_stops_with_the_data(device_end: ModuleType) -> None:
    parts = [memoryview(bytearray(4)), memoryview(bytearray(10)), memoryview(bytearray(3))]
    request = device_end.Request(0, [], list(parts))
    assert request.write(b"abcdef") == 6
    assert request.write(b"") == 0
    assert request.write(b"ghijklmnopq-too-long") == 11
    assert b"".join(bytes(part) for part in parts) == b"abcdefghijklmnopq"
    assert (request.written, request.writable) == (17, [])


def test_the_longest_queue_and_one_that_ends_where_the_region_does_are_taken() -> None:
    for size in (1, 32768):
        layout = RingLayout.packed_at(64, size)
        layout.check(64, layout.end)
        with pytest.raises(OutsideAddress, match="used ring"):
            layout.check(64, layout.end - 1)
        with pytest.raises(OutsideAddress, match=r"descriptor table of \d+ bytes at 0x40 is outside the window \[0x41"):
            layout.check(65, layout.end)
