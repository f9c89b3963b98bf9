"""The engine of a block device's queue: requests go from the ring to the image and back, without a Python object each.

This file runs compiled by Cython, and as it stands when it is not: one source, the same checks. Compiled, reads and
writes of what the page cache holds need no Python at all.

What would make the queue wait is left to a few threads of the queue's own: reads of what is not cached, flushes,
writes that must be durable at once, all that is rare, and everything on file systems that may wait for somebody else
(NFS, FUSE). Requests end in whatever order they are done, as virtio has it; a flush covers what was given back before
it was made available, and that is written by then (virtio 1.4, 5.2.6.2).

A reset cancels: what has not begun is dropped, what is under way ends after its next system call.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import time
from collections.abc import Callable

import nodma.ring.atomics as atomics
import nodma.ring.syscalls as syscalls
from nodma.ring.device_end import DeviceRing, Request
from nodma.ring.engine import QueueEngine
from nodma.spec.virtio_blk import SECTOR, BlkRequest, BlkStatus, BlkType

log = logging.getLogger("nodma.device.blk")

_SECTOR = SECTOR
_HEADER_BYTES = BlkRequest.size
_KIND_MASK = BlkRequest.type.mask
_IN = int(BlkType.IN)
_OUT = int(BlkType.OUT)
_FLUSH = int(BlkType.FLUSH)
_OK = int(BlkStatus.OK)
_IOERR = int(BlkStatus.IOERR)

_JOBS = 256
"""Requests of a queue that can be outstanding; more are waited for."""
_JOB_PARTS = 128
"""Parts that an outstanding request can have; one with more is waited for."""
_PAGE = 4096

Cancelled = Callable[[], bool]
"""Returns whether nobody is waiting for the request any longer."""
RareHandler = Callable[[int, Request, Cancelled], int]
"""Handles a request that is neither read, write nor flush, by its type; returns the status."""


class BlockEngine(QueueEngine):
    """The engine of one request queue of a disk of ``size`` bytes, open as ``fd``; ``name`` is for messages.

    ``buffered_fd`` is the same image through the page cache, for what O_DIRECT refuses. With ``inline``, what the page
    cache holds is read and written at once, and the rest left to helpers; ``in_memory`` says that there is no rest.
    ``sync`` makes durable what was written; ``lost`` is one byte, not 0 once that has failed: then no write is durable
    any more. A read or write moves at most ``max_request`` bytes. While ``durable`` is set, a write is not given back
    before it is durable.
    """

    def __init__(
        self,
        ring: DeviceRing,
        handle_rare: RareHandler,
        sync: Callable[[Cancelled], None],
        lost: memoryview,
        *,
        fd: int,
        buffered_fd: int,
        size: int,
        max_request: int,
        read_only: bool = False,
        inline: bool = True,
        in_memory: bool = False,
        name: str = "the image",
    ) -> None:
        super().__init__(ring)
        self._handle_rare = handle_rare
        self._sync_image = sync
        self._lost = lost
        self._name = name
        self._fd = fd
        self._buffered_fd = buffered_fd
        self.sectors = size // _SECTOR
        """Of the disk, 512 bytes each."""
        self._max_request = max_request
        self._read_only = read_only
        self._inline = inline
        self._in_memory = in_memory
        self._file_size = -1
        self.durable = False
        self._memory = ring.memory
        self._window = memoryview(ring.memory)
        self._header = memoryview(bytearray(_HEADER_BYTES))
        self.reads = self.bytes_read = 0
        self.writes = self.bytes_written = 0
        self.flushes = self.errors = 0
        self._nowait = 0
        self._helped = False
        self._work_reader = self._work_writer = self._done_reader = self._done_writer = -1
        self._job_kind = atomics.numbers("I", _JOBS)
        self._job_head = atomics.numbers("I", _JOBS)
        self._job_readable = atomics.numbers("I", _JOBS)
        self._job_parts = atomics.numbers("I", _JOBS)
        self._job_result = atomics.numbers("I", _JOBS)
        self._job_written = atomics.numbers("I", _JOBS)
        self._job_status = atomics.numbers("Q", _JOBS)
        self._job_sector = atomics.numbers("Q", _JOBS)
        self._job_length = atomics.numbers("Q", _JOBS)
        self._job_offsets = atomics.numbers("Q", 0)
        self._job_lengths = atomics.numbers("I", 0)
        self._free = atomics.numbers("I", _JOBS)
        self._free_jobs = _JOBS
        for number in range(_JOBS):
            self._free[number] = number

    # With helpers

    def start_helpers(self) -> None:
        """Leave what would make the queue wait to threads that run :meth:`helper_main`."""
        self._job_offsets = atomics.numbers("Q", _JOBS * _JOB_PARTS)
        self._job_lengths = atomics.numbers("I", _JOBS * _JOB_PARTS)
        self._work_reader, self._work_writer = os.pipe2(os.O_CLOEXEC)
        self._done_reader, self._done_writer = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(self._done_reader, fcntl.F_SETFL, os.O_NONBLOCK)
        self._nowait = 0 if self._in_memory else syscalls.NOWAIT
        self._helped = True
        self.watch(self._done_reader)

    def drain(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for all that is outstanding, and give it back; return whether nothing is any more.

        The loop does not run. What was cancelled is not given back.
        """
        if not self.outstanding:
            return True
        end = time.monotonic() + seconds
        done = select.poll()  # unlike select, it takes descriptors of 1024 and more
        done.register(self._done_reader, select.POLLIN)
        while self.outstanding:
            if not done.poll(max(0.0, end - time.monotonic()) * 1000):
                return False
            self.collect()
        return True

    def resize(self, size: int) -> None:
        """Serve ``size`` bytes from now on, which are more than before."""
        self.sectors = size // _SECTOR

    def stop_helpers(self) -> None:
        """Have :meth:`helper_main` return, in every thread that runs it. Nothing is outstanding."""
        if self._work_writer >= 0:
            os.close(self._work_writer)
            self._work_writer = -1
        self._helped = False

    def close(self) -> None:
        """Close what the engine opened. No thread is in it."""
        self.stop_helpers()
        for fd in (self._work_reader, self._done_reader, self._done_writer):
            if fd >= 0:
                os.close(fd)
        self._work_reader = self._done_reader = self._done_writer = -1
        super().close()

    def helper_main(self) -> None:
        """Do what was left to helpers, one after the other, until they are dismissed."""
        while True:
            number = syscalls.take(self._work_reader)
            if number < 0:
                return
            self._do(number)
            syscalls.post(self._done_writer, number)

    def _do(self, number: int) -> None:
        kind = self._job_kind[number]
        first = number * _JOB_PARTS
        parts = self._job_parts[number]
        self._job_written[number] = 0
        if self._is_cancelled():
            self._job_result[number] = _IOERR
        elif kind in (_IN, _OUT):
            self._job_result[number] = self._transfer(
                kind, self._job_offsets, self._job_lengths, first, parts,
                self._job_sector[number] * _SECTOR, self._job_length[number],
            )  # fmt: skip
        elif kind == _FLUSH:
            self._job_result[number] = self._sync()
        else:
            self._job_result[number], self._job_written[number] = self._do_rare(
                kind,
                self._job_head[number],
                self._job_offsets,
                self._job_lengths,
                first,
                self._job_readable[number],
                parts,
            )

    def collect(self) -> int:
        """Return to the ring what helpers have finished, unless it was cancelled; return how many."""
        found = 0
        while self.outstanding:
            number = syscalls.take(self._done_reader)
            if number < 0:
                break
            self.outstanding -= 1
            self._free[self._free_jobs] = number
            self._free_jobs += 1
            if self._is_cancelled():
                continue
            self._complete(
                self._job_kind[number], self._job_head[number], self._job_status[number], self._job_result[number],
                self._job_length[number], self._job_written[number],
            )  # fmt: skip
            found += 1
        if found:
            self.publish_and_interrupt()
        return found

    # A batch

    def handle(self, count: int) -> None:
        """Do each request of the batch, or leave it to a helper."""
        memory = self._memory
        offsets = self.batch.offsets
        lengths = self.batch.lengths
        begins = self.batch.begins
        readable = self.batch.readable
        heads = self.batch.heads
        end = 0
        self._file_size = -1
        for number in range(count):
            begin = end
            end = begins[number + 1]
            head = heads[number]
            middle = begin + readable[number]
            last = end - 1
            if middle == end or not lengths[last]:  # nowhere to put a status: all the driver gets is the chain back
                self.errors += 1
                self.ring.add_used(head, 0)
                continue
            # The last byte is the status, wherever the driver's parts begin and end (2.7.4).
            left = lengths[last] - 1
            lengths[last] = left
            status = offsets[last] + left
            stop = end if left else last
            if begin < middle and lengths[begin] == _HEADER_BYTES:  # as it nearly always is
                word, sector = atomics.load_pair(memory, offsets[begin])
                begin += 1
            elif self._gather(begin, middle):
                word, sector = atomics.load_pair(self._header, 0)
            else:
                self._complete(_IN, head, status, _IOERR, 0, 0)
                continue
            kind = word & _KIND_MASK
            if kind == _IN:
                self._move(_IN, head, sector, status, middle, stop)
            elif kind == _OUT:
                self._move(_OUT, head, sector, status, begin, middle)
            elif not self._offload(kind, head, sector, 0, status, begin, middle - begin, stop):
                written = 0
                self.begin_call()
                if kind == _FLUSH:
                    result = self._sync()
                else:
                    result, written = self._do_rare(kind, head, offsets, lengths, begin, middle - begin, stop - begin)
                if self.end_call():
                    self._complete(kind, head, status, result, 0, written)
            if self._is_cancelled():
                return

    def _gather(self, begin: int, middle: int) -> bool:
        """Take the header off the front of the readable parts, however they are cut; False if they are too short."""
        offsets = self.batch.offsets
        lengths = self.batch.lengths
        part = begin
        for at in range(_HEADER_BYTES):
            while part < middle and not lengths[part]:
                part += 1
            if part == middle:
                return False
            self._header[at] = self._memory[offsets[part]]
            offsets[part] += 1
            lengths[part] -= 1
        return True

    def _move(self, kind: int, head: int, sector: int, status: int, first: int, last: int) -> None:
        """Read or write the parts ``first`` to ``last``: at once, if no disk has to be waited for."""
        offsets = self.batch.offsets
        lengths = self.batch.lengths
        length = 0
        if last - first == 1:
            length = lengths[first]
        else:
            for part in range(first, last):
                length += lengths[part]
        count = length // _SECTOR
        if (
            not 0 < length <= self._max_request  # as long as a request may be,
            or length % _SECTOR  # in whole sectors,
            or count > self.sectors  # on the disk,
            or sector > self.sectors - count
            or (kind == _OUT and self._read_only)  # which may be written, if it is to be
        ):
            self._complete(kind, head, status, _IOERR, 0, 0)
            return
        at = sector * _SECTOR
        done = 0
        if not self._inline:
            pass
        elif kind == _IN:
            done = syscalls.read(self._fd, self._memory, offsets, lengths, first, last - first, at, self._nowait)
        elif not self.durable and not (self._helped and (at | length) % _PAGE):  # part of a page may have to be read
            self.begin_call()
            if self._file_size < 0:  # a block device's waits for a discard of it that is under way
                self._file_size = syscalls.size(self._fd)
            if at + length <= self._file_size:
                done = syscalls.write(self._fd, self._memory, offsets, lengths, first, last - first, at, 0)
            if not self.end_call():
                return
        if done == length:
            self._complete(kind, head, status, _OK, length, 0)
        elif not self._offload(kind, head, sector, length, status, first, 0, last):
            self.begin_call()
            result = self._transfer(kind, offsets, lengths, first, last - first, at, length)
            if self.end_call():
                self._complete(kind, head, status, result, length, 0)

    def _transfer(
        self, kind: int, offsets: list[int], lengths: list[int], first: int, count: int, at: int, left: int
    ) -> int:
        """Read or write all, and wait as long as it takes; return the status. The parts are used up."""
        fd = self._fd
        flags = syscalls.DSYNC if self.durable and kind == _OUT else 0
        if kind == _OUT and at + left > syscalls.size(fd):  # or it would become longer, with a hole
            self._complain(0)
            return _IOERR
        while left:
            if self._is_cancelled():
                return _IOERR
            if kind == _IN:
                done = syscalls.read(fd, self._memory, offsets, lengths, first, count, at, flags)
            else:
                done = syscalls.write(fd, self._memory, offsets, lengths, first, count, at, flags)
            if done == -syscalls.EINVAL and fd != self._buffered_fd:  # not aligned as O_DIRECT wants it
                fd = self._buffered_fd
                continue
            if done <= 0:
                self._complain(-done)
                return _IOERR
            at += done
            left -= done
            while count and done >= lengths[first]:
                done -= lengths[first]
                first += 1
                count -= 1
            if done:
                offsets[first] += done
                lengths[first] -= done
        return _IOERR if flags and self._lost[0] else _OK

    def _offload(
        self, kind: int, head: int, sector: int, length: int, status: int, first: int, readable: int, last: int
    ) -> bool:
        """Leave a request to a helper; False if there is none, or no room to remember it."""
        offsets = self.batch.offsets
        lengths = self.batch.lengths
        count = last - first
        if not self._helped or not self._free_jobs or count > _JOB_PARTS:
            return False
        self._free_jobs -= 1
        number = self._free[self._free_jobs]
        self._job_kind[number] = kind
        self._job_head[number] = head
        self._job_sector[number] = sector
        self._job_length[number] = length
        self._job_status[number] = status
        self._job_readable[number] = readable
        self._job_parts[number] = count
        for part in range(count):
            self._job_offsets[number * _JOB_PARTS + part] = offsets[first + part]
            self._job_lengths[number * _JOB_PARTS + part] = lengths[first + part]
        self.outstanding += 1
        syscalls.post(self._work_writer, number)
        return True

    def _complete(self, kind: int, head: int, status: int, result: int, length: int, written: int) -> None:
        """Return a request to the ring with its status, and count it."""
        self._memory[status] = result
        if result != _OK:
            self.errors += 1
            self.ring.add_used(head, 0)  # after data that was not written the status does not count (2.7.8.2)
            return
        if kind == _IN:
            self.reads += 1
            self.bytes_read += length
            written = length
        elif kind == _OUT:
            self.writes += 1
            self.bytes_written += length
        elif kind == _FLUSH:
            self.flushes += 1
        self.ring.add_used(head, written + 1)

    # Python, wherever it is called from

    def _sync(self) -> int:
        """Have the image synced; return the status."""
        if self._read_only:
            return _OK
        try:
            self._sync_image(self.cancelled)
        except OSError:  # which was logged where it was found
            return _IOERR
        except Exception:
            log.exception("%s: the sync failed", self._name)
            return _IOERR
        return _OK

    def _do_rare(
        self, kind: int, head: int, offsets: list[int], lengths: list[int], first: int, readable: int, count: int
    ) -> tuple[int, int]:
        """Have the device handle what is rare; return the status, and the bytes written."""
        try:
            views = [
                self._window[offsets[part] : offsets[part] + lengths[part]] for part in range(first, first + count)
            ]
            request = Request(head, views[:readable], views[readable:])
            result = self._handle_rare(kind, request, self.cancelled)
        except OSError as error:
            if error.errno != errno.ECANCELED:
                self._complain(error.errno or syscalls.EIO)
            return _IOERR, 0
        except Exception:
            log.exception("%s: the block device failed at a request of type %d", self._name, kind)
            return _IOERR, 0
        return result, request.written

    def _complain(self, error: int) -> None:
        log.warning("%s: %s", self._name, os.strerror(error) if error else "it is shorter than the disk")
