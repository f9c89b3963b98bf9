"""The device's end of a split virtqueue (virtio 1.4, 2.7), over a window.

This file runs compiled by Cython, and as it stands when it is not: one source, the same checks. Every
number that the driver wrote is read once, checked at once, and from then on a local; the driver may change
it at any time and gains nothing. What breaks a rule raises BadRing with the rule; the caller sets
DEVICE_NEEDS_RESET.
"""

from __future__ import annotations

import nodma.ring.atomics as atomics
from nodma.errors import BadRing, OutsideAddress
from nodma.ring.layout import RingLayout
from nodma.spec.virtio import (
    AVAIL_NO_INTERRUPT,
    USED_NO_NOTIFY,
    DescFlag,
    Descriptor,
)
from nodma.window import Window

_DESC_BYTES = Descriptor.size
_NEXT = int(DescFlag.NEXT)
_WRITE = int(DescFlag.WRITE)
_INDIRECT = int(DescFlag.INDIRECT)
_NO_INTERRUPT = AVAIL_NO_INTERRUPT
_NO_NOTIFY = USED_NO_NOTIFY

CHAIN_LIMIT = 1024
"""Descriptors that a chain may have, if the queue is not longer: what one preadv(2) takes (IOV_MAX)."""
CHAIN_BYTES_LIMIT = 0xFFFFFFFF
"""Bytes that a chain may have in all (2.7.5.2)."""
_BATCH_LIMIT = 256

# What a driver can do wrong in a chain, for DeviceRing.explain.
_NO_FAULT, _AHEAD, _INDEX, _OUTSIDE, _NESTED, _TABLE, _ORDER, _LOOP, _LONG = range(9)


class Request:
    """One descriptor chain, as the device may touch it: bounded views of the window and nothing else.

    ``readable`` are the parts that the driver filled, ``writable`` those that the device is to fill, both
    in the driver's order and framing, of which a device must assume nothing (2.7.4). ``written`` is what
    the driver will be told: how many bytes from the start of the writable parts are the device's.
    """

    __slots__ = ("head", "readable", "writable", "written")

    def __init__(self, head: int, readable: list[memoryview], writable: list[memoryview]) -> None:
        self.head = head
        self.readable = readable
        self.writable = writable
        self.written = 0

    def read(self, size: int | None = None) -> bytes:
        """Take up to ``size`` bytes, or all that are left, from the front of the readable parts."""
        readable = self.readable
        if readable and len(readable[0]) == size:  # as it nearly always is
            return readable.pop(0).tobytes()
        parts = []
        while readable and size != 0:
            part = readable[0]
            if size is not None and len(part) > size:
                parts.append(part[:size])
                readable[0] = part[size:]
                break
            parts.append(part)
            del readable[0]
            if size is not None:
                size -= len(part)
        return b"".join(parts)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Put ``data`` at the front of what is left of the writable parts; return the bytes that fitted."""
        data = memoryview(data).cast("B")
        done = 0
        while self.writable and done < len(data):
            part = self.writable[0]
            count = min(len(part), len(data) - done)
            part[:count] = data[done : done + count]
            done += count
            if count == len(part):
                del self.writable[0]
            else:
                self.writable[0] = part[count:]
        self.written += done
        return done

    def take_tail(self, size: int) -> memoryview | None:
        """Take the last ``size`` bytes off the writable parts, where they lie in one piece; else None."""
        writable = self.writable
        if not writable:
            return None
        last = writable[-1]
        if len(last) == size:
            return writable.pop()
        if len(last) < size:
            return None
        writable[-1] = last[:-size]
        return last[len(last) - size :]


class Batch:
    """Chains as the ring walked them, flat, for those who handle them without a Python object a request.

    Chain ``i`` has the head ``heads[i]`` and the parts from ``begins[i]`` up to ``begins[i + 1]``, of which the first
    ``readable[i]`` are for the device to read. Part ``p`` is ``lengths[p]`` bytes at ``offsets[p]`` of the window,
    checked. What was read from the ring once is here, where no driver can change it.
    """

    def __init__(self, chains: int, parts: int) -> None:
        """Make room for so many chains, and so many parts in all of them together."""
        self.chains = chains
        self.parts = parts
        self.heads = atomics.numbers("H", chains)
        self.begins = atomics.numbers("I", chains + 1)
        self.readable = atomics.numbers("I", chains)
        self.offsets = atomics.numbers("Q", parts)
        self.lengths = atomics.numbers("I", parts)
        self.fault = _NO_FAULT
        self.fault_head = self.fault_index = self.fault_entries = self.fault_flags = 0
        self.fault_address = self.fault_length = 0


class DeviceRing:
    """The queue that ``layout`` places in ``window``.

    An address in a descriptor is good if it, less ``base``, lies in ``[first, limit)`` of the window and
    so does all that it begins; the profile says which these are. ``base`` may be set anew when the window
    moves. Raises BadRing if the parts of the queue do not lie in there, aligned as they must be (DMB-V4).
    """

    def __init__(
        self,
        window: Window,
        layout: RingLayout,
        *,
        base: int,
        first: int,
        limit: int,
        indirect: bool,
        event_idx: bool,
    ) -> None:
        layout.check(first, limit, base)
        self._bytes: memoryview = window.bytes
        size = layout.size
        self.memory = window.bytes
        """The window, for those who handle a batch."""
        self._table = layout.desc
        self._avail = window.words("H", layout.avail, 2 + size + 1)
        self._used_head = window.words("H", layout.used, 2 + 4 * size + 1)
        self._used_ring = window.words("I", layout.used, 1 + 2 * size)
        self._size = size
        self._mask = size - 1
        self._room = max(size, CHAIN_LIMIT)
        self._event_idx = event_idx
        self._indirect = indirect
        self.base = base
        self.first = first
        self.limit = limit
        self._seen = self._used = self._signalled = 0
        self._batch = self.make_batch(min(size, _BATCH_LIMIT))

    def make_batch(self, chains: int) -> Batch:
        """Make a batch of up to so many chains that any chain of this queue fits into."""
        return Batch(chains, self._room)

    def rebase(self, base: int) -> None:
        """Follow the window to another bus address."""
        self.base = base

    def pop(self, most: int) -> list[Request]:
        """Take up to ``most`` requests that the driver made available; fewer although there are more, at times.

        Raises BadRing at the first that is wrong, once those before it were given out.
        """
        batch = self._batch
        count = self.fetch_chains(batch, most)
        if count < 0:
            raise self.explain(batch)
        requests: list[Request] = []
        window = self._bytes
        end = 0
        for number in range(count):
            at = end
            end = batch.begins[number + 1]
            middle = at + batch.readable[number]
            readable: list[memoryview] = []
            writable: list[memoryview] = []
            while at < middle:
                offset = batch.offsets[at]
                readable.append(window[offset : offset + batch.lengths[at]])
                at += 1
            while at < end:
                offset = batch.offsets[at]
                writable.append(window[offset : offset + batch.lengths[at]])
                at += 1
            requests.append(Request(batch.heads[number], readable, writable))
        return requests

    def pending(self) -> bool:
        """Return whether the driver made something available that was not taken."""
        return atomics.load_acquire(self._avail, 1) != self._seen

    def available(self) -> int:
        """Return how many chains the driver made available that were not taken, if it can be believed."""
        return (atomics.load_acquire(self._avail, 1) - self._seen) & 0xFFFF

    def fetch_chains(self, batch: Batch, most: int) -> int:
        """Walk up to ``most`` chains that the driver made available into ``batch``; return how many.

        At a chain that is wrong it ends before that; if that is the first, it returns -1, and :meth:`explain` says why.
        """
        batch.fault = _NO_FAULT
        seen = self._seen
        ahead = (atomics.load_acquire(self._avail, 1) - seen) & 0xFFFF
        if ahead > self._size:
            batch.fault = _AHEAD
            batch.fault_index = ahead
            return -1
        done = self._walk(batch, min(ahead, most, batch.chains))
        if batch.fault and not done:
            return -1
        self._seen = (seen + done) & 0xFFFF
        return done

    def _walk(self, batch: Batch, count: int) -> int:
        """Walk the next ``count`` chains; return how many are whole.

        Each number is read once, and checked where it is read (SW-D2, DMB-V4, DMB-V5).
        """
        memory = self.memory
        avail = self._avail
        mask = self._mask
        room = self._room
        base = self.base
        first = self.first
        limit = self.limit
        indirect = self._indirect
        offsets = batch.offsets
        lengths = batch.lengths
        parts = batch.parts
        seen = self._seen
        fault = _NO_FAULT
        at = 0
        for chain in range(count):
            head = index = avail[2 + ((seen + chain) & mask)]
            table = self._table
            entries = self._size
            total = 0
            inside = writing = False
            begin = middle = at
            for _ in range(room):
                if index >= entries:
                    fault = _INDEX
                    batch.fault_index = index
                    batch.fault_entries = entries
                    break
                address, length, flags, index = atomics.load_descriptor(memory, table + _DESC_BYTES * index)
                offset = address - base
                if not first <= offset <= limit - length:
                    fault = _OUTSIDE
                elif flags & _INDIRECT:
                    if inside or not indirect or flags & _NEXT or not length or length % _DESC_BYTES:
                        fault = _NESTED if inside else _TABLE
                    else:
                        inside = True
                        table = offset
                        entries = length // _DESC_BYTES
                        index = 0
                        continue
                elif at == parts:
                    return chain  # the rest has room in the next batch
                else:
                    offsets[at] = offset
                    lengths[at] = length
                    at += 1
                    total += length
                    if flags & _WRITE:
                        writing = True
                    elif writing:
                        fault = _ORDER
                    else:
                        middle = at
                    if flags & _NEXT and not fault:
                        continue
                    break
                batch.fault_address = address
                batch.fault_length = length
                batch.fault_flags = flags
                break
            else:
                fault = _LOOP
            if total > CHAIN_BYTES_LIMIT:
                fault = _LONG
                batch.fault_length = total
            if fault:
                batch.fault = fault
                batch.fault_head = head
                return chain
            batch.heads[chain] = head
            batch.readable[chain] = middle - begin
            batch.begins[chain + 1] = at
        return count

    def explain(self, batch: Batch) -> BadRing:
        """Say what was wrong with the chain at which :meth:`take` gave -1."""
        fault, head, length = batch.fault, batch.fault_head, batch.fault_length
        if fault == _AHEAD:
            return BadRing(f"the available index is {batch.fault_index} ahead, the queue has {self._size} entries")
        if fault == _INDEX:
            return BadRing(
                f"descriptor {batch.fault_index} of a table of {batch.fault_entries}, in the chain of head {head}"
            )
        if fault == _OUTSIDE:
            return self._outside(head, batch.fault_address, length, batch.fault_flags)
        if fault in (_NESTED, _TABLE):
            return self._bad_table(head, fault == _NESTED, batch.fault_flags, length)
        if fault == _ORDER:
            return BadRing(f"the chain of head {head} has a readable part after a writable one")
        if fault == _LOOP:
            return BadRing(f"the chain of head {head} has a loop, or more descriptors than the device takes")
        return BadRing(f"the chain of head {head} has {length} bytes, more than 2^32 - 1")

    def _outside(self, head: int, address: int, length: int, flags: int) -> OutsideAddress:
        return OutsideAddress(
            f"{'indirect table' if flags & _INDIRECT else 'buffer'} of {length} bytes at {address:#x}"
            f" in the chain of head {head} is outside the window"
            f" [{self.base + self.first:#x}, {self.base + self.limit:#x})",
            address,
            length,
        )

    def _bad_table(self, head: int, inside: bool, flags: int, length: int) -> BadRing:
        """Say what of 2.7.5.3 an indirect descriptor breaks."""
        if not self._indirect:
            return BadRing(f"the chain of head {head} is indirect, which was not negotiated")
        if inside:
            return BadRing(f"the chain of head {head} has an indirect table inside an indirect table")
        if flags & _NEXT:
            return BadRing(f"the chain of head {head} has a descriptor that is both indirect and continued")
        return BadRing(
            f"the chain of head {head} has an indirect table of {length} bytes, not a multiple of {_DESC_BYTES}"
        )

    def add_used(self, head: int, written: int) -> None:
        """Return a chain to the driver, with the bytes written to it. :meth:`publish` tells the driver."""
        used = self._used
        at = 1 + 2 * (used & self._mask)
        self._used_ring[at] = head
        self._used_ring[at + 1] = written
        self._used = (used + 1) & 0xFFFF

    def push(self, done: list[Request]) -> None:
        """Return requests to the driver, with the bytes written to each. :meth:`publish` tells the driver."""
        ring = self._used_ring
        used = self._used
        mask = self._mask
        for request in done:
            at = 1 + 2 * (used & mask)
            ring[at] = request.head
            ring[at + 1] = request.written
            used = (used + 1) & 0xFFFF
        self._used = used

    def publish(self) -> bool:
        """Let the driver see what was pushed; return whether it wants an interrupt for it (2.7.7)."""
        used = self._used
        before = self._signalled
        if used == before:
            return False
        atomics.store_release(self._used_head, 1, used)
        atomics.full_fence()  # the index before the driver's wish: else both sides wait for each other
        self._signalled = used
        if not self._event_idx:
            return not self._avail[0] & _NO_INTERRUPT
        event = self._avail[2 + self._size]
        return ((used - event - 1) & 0xFFFF) < ((used - before) & 0xFFFF)

    def arm(self) -> bool:
        """Ask for a notification of the next request; return whether one came before that took effect."""
        if self._event_idx:
            self._used_head[2 + 4 * self._size] = self._seen
        else:
            self._used_head[0] = 0
        atomics.full_fence()  # the wish before the index, against the same race
        return atomics.load_acquire(self._avail, 1) != self._seen

    def disarm(self) -> None:
        """Ask for no notifications while the queue is being served."""
        if not self._event_idx:
            self._used_head[0] = _NO_NOTIFY
