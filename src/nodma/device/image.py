"""A disk image as the block device uses it: a file or a block device, open in one of the cache modes."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from nodma.device.image_format import detect_format
from nodma.device.image_lock import lock_image
from nodma.device.image_sync import Syncer
from nodma.errors import Unavailable
from nodma.spec.virtio_blk import SECTOR

log = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 20.0
"""How long closing an image waits for what was written to become durable."""
PIECE: Final = 16 << 20
"""Bytes that one system call discards or zeroes at most: between two of them a request can be cancelled."""

_SIZE_SECONDS: Final = 1.0

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
_BLKROGET: Final = 0x125E
_BLKSSZGET: Final = 0x1268
_BLKDISCARD: Final = 0x1277
_BLKIOMIN: Final = 0x1278
_BLKIOOPT: Final = 0x1279
_BLKPBSZGET: Final = 0x127B
_BLKZEROOUT: Final = 0x127F
_PAGE: Final = 4096
_ZEROS: Final = bytes(1 << 16)
_ZERO_WRITES: Final = 16
"""Copies of _ZEROS that one system call writes at most."""
_IN_MEMORY: Final = frozenset({0x01021994, 0x858458F6, 0x958458F6})
"""File systems, by the f_type of statfs(2), that never wait for a disk: tmpfs, ramfs, hugetlbfs."""

_REFUSED: Final = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOTTY,
        errno.ENOSYS,
        errno.EINVAL,
        errno.EPERM,
        errno.EACCES,
        errno.ENODEV,
        errno.EBUSY,
        errno.ETXTBSY,
        errno.ENXIO,
    }
)
"""What a file system or a driver answers that cannot, or may not, zero or discard; not that its disk failed."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Cache(StrEnum):
    """What of the host's page cache a disk uses, in the words that QEMU's users know."""

    WRITEBACK = "writeback"
    """The page cache; what was written is durable after a flush."""
    WRITETHROUGH = "writethrough"
    """The page cache, and each write is durable before it is acknowledged; the driver sees no cache to flush."""
    NONE = "none"
    """No page cache (O_DIRECT); what was written is durable after a flush, for the disk may have a cache of its own."""


def _never() -> bool:
    return False


class Image:
    """An open disk image. Offsets and lengths are bytes; a failing file raises OSError.

    ``fd`` is for reading and writing; ``buffered_fd`` goes through the page cache in every mode, for what O_DIRECT
    refuses. ``sector`` is the smallest unit of the device below it, ``physical_block`` what it writes without reading
    first, ``min_io`` and ``optimal_io`` the lengths that it prefers (0: it does not say). ``in_memory``: reading and
    writing it never waits for a disk. ``can_decline_to_wait``: it says so where a read would wait (RWF_NOWAIT); what
    does not, NFS and FUSE for instance, may wait for long.
    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        cache: Cache = Cache.WRITEBACK,
        raw: bool = False,
        lock: bool = True,
    ) -> None:
        """Open and lock it.

        Raises Unavailable if it is missing, in use by somebody else, not writable though it must be, of an odd size, in
        a format that is not raw (unless ``raw`` insists), or if its file system has no O_DIRECT and the mode needs it.
        """
        self.path = path
        self.read_only = read_only
        self.cache = cache
        fds: list[int] = []
        try:
            self._open(fds)
            if not raw:
                self._refuse_formats()
            if lock:
                lock_image(self._sync_fd, path, writable=not read_only)
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, OSError):
                raise Unavailable(f"cannot use the image {path}: {error.strerror}") from error
            raise
        self._fds = fds
        self._syncer = Syncer(self._sync_fd, f"image {path}")
        self._asking: threading.Thread | None = None  # what the size is; it may hang

    def _open(self, fds: list[int]) -> None:
        flags = (os.O_RDONLY if self.read_only else os.O_RDWR) | os.O_CLOEXEC
        try:
            _check_kind(self.path, self.path.stat().st_mode)  # opening a FIFO waits, opening a tape rewinds it
            self.fd = self.buffered_fd = _open(self.path, flags)
            fds.append(self.fd)
            self._sync_fd = _open(self.path, flags)
            fds.append(self._sync_fd)
        except FileNotFoundError:
            raise Unavailable(
                f"the image {self.path} does not exist: create one, for example with truncate -s 1G {self.path}"
            ) from None
        except PermissionError:
            hint = "" if self.read_only else " (use --read-only to serve it read-only)"
            doing = "read" if self.read_only else "write"
            raise Unavailable(f"no permission to {doing} the image {self.path}{hint}") from None
        except OSError as error:
            hint = " (use --read-only to serve it read-only)" if error.errno == errno.EROFS else ""
            raise Unavailable(f"cannot open the image {self.path}: {error.strerror}{hint}") from error
        mode = os.fstat(self.fd)
        _check_kind(self.path, mode.st_mode)
        self.is_block = stat.S_ISBLK(mode.st_mode)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)
        """Bytes, when it was opened or last :meth:`grow` found it to have grown."""
        if not self.size:
            raise Unavailable(
                f"the image {self.path} is empty: set a size, for example with truncate -s 1G {self.path}"
            )
        if self.size % SECTOR:
            raise Unavailable(
                f"the image {self.path} has {self.size} bytes, expected a multiple of {SECTOR}:"
                f" extend it with truncate -s %{SECTOR} {self.path}"
            )
        self._find_limits(mode.st_blksize)
        if self.cache is Cache.NONE:
            self.fd = self._open_direct(flags)
            fds.append(self.fd)

    def _find_limits(self, preferred: int) -> None:
        """Ask what sizes the device below prefers; a file's ``st_blksize`` is believed up to a page.

        Beyond that it says how a file is best read (1 MiB on NFS, the record size on ZFS), not what is written at once.
        """
        self.sector, self.optimal_io = SECTOR, 0
        self.in_memory = not self.is_block and _file_system(self.fd) in _IN_MEMORY
        self.can_decline_to_wait = self.in_memory or _knows_nowait(self.fd)
        if not self.is_block:
            self.physical_block = self.min_io = _power_of_two(preferred, _PAGE)
            return
        if not self.read_only and _ask(self.fd, _BLKROGET):
            raise Unavailable(f"the block device {self.path} is read-only: use --read-only")
        self.sector = _power_of_two(_ask(self.fd, _BLKSSZGET), 1 << 16)
        self.physical_block = max(self.sector, _power_of_two(_ask(self.fd, _BLKPBSZGET), 1 << 24))
        self.min_io = max(self.physical_block, _ask(self.fd, _BLKIOMIN))
        self.optimal_io = _ask(self.fd, _BLKIOOPT)

    def _open_direct(self, flags: int) -> int:
        try:
            return _open(self.path, flags | os.O_DIRECT)
        except OSError as error:
            raise Unavailable(
                f"cannot open the image {self.path} without the page cache: {error.strerror};"
                " its file system may not support O_DIRECT: use --cache writeback"
            ) from error

    def _refuse_formats(self) -> None:
        found = detect_format(self.buffered_fd, self.size)
        if found:
            raise Unavailable(
                f"the image {self.path} is in the format {found.name}, and only raw images are served:"
                f" {found.advice(self.path)}"
            )

    @property
    def serial(self) -> str:
        """A serial number for this image: the same each time that it is served under this path or device."""
        identity = (self.is_block and _device_id(os.fstat(self.buffered_fd).st_rdev)) or os.path.realpath(self.path)
        return f"{_fingerprint(os.fsencode(identity)):016x}"

    @property
    def lost(self) -> memoryview:
        """One byte: 1 once something that was written is lost, as a sync reported."""
        return self._syncer.lost

    def sync(self, cancelled: Callable[[], bool] = _never) -> None:
        """Make all that was written durable, or fail for good: see :class:`Syncer`. Raises OSError."""
        if not self.read_only:
            self._syncer.sync(cancelled)

    def begin_sync(self) -> None:
        """Begin to make all that was written durable, and do not wait for it. A failure is remembered."""
        if not self.read_only:
            self._syncer.begin()

    def grow(self) -> bool:
        """Look how large it is now; return whether it has grown, and is now served as large as that.

        Raises Unavailable if it has shrunk: what is served stays as large as it was.
        """
        now = self._ask_size() // SECTOR * SECTOR
        if now < self.size:
            raise Unavailable(
                f"the image {self.path} has shrunk from {self.size} to {now} bytes, and a disk in use cannot: it is"
                f" still served with {self.size} bytes, and what lies beyond the image's end fails; extend it again"
            )
        grown = now > self.size
        self.size = now
        return grown

    def _ask_size(self) -> int:
        """Return how many bytes there are now; the caller may not wait long, and NFS or FUSE may not answer."""
        found: list[int] = []

        def ask() -> None:
            with contextlib.suppress(OSError):
                found.append(os.lseek(self.buffered_fd, 0, os.SEEK_END))

        if not (self._asking and self._asking.is_alive()):  # else whoever asks again would wait again, for nothing
            thread = threading.Thread(target=ask, name="size", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread left
                thread.start()
                self._asking = thread
                thread.join(_SIZE_SECONDS)
        if not found:
            raise Unavailable(f"cannot determine the size of the image {self.path}: its file system does not answer")
        return found[0]

    def discard(self, offset: int, length: int, cancelled: Callable[[], bool] = _never) -> None:
        """Return the range to the file system where it supports that; what is read there afterwards is undefined.

        Raises OSError if the disk fails, or ECANCELED.
        """
        first = -(-offset // self.sector) * self.sector
        last = (offset + length) // self.sector * self.sector
        for at, count in _pieces(first, last - first):
            _check(cancelled)
            if not self._try(_BLKDISCARD, _PUNCH_HOLE, at, count):
                return  # it is advice

    def write_zeroes(self, offset: int, length: int, *, unmap: bool, cancelled: Callable[[], bool] = _never) -> None:
        """Make the range read as zeros; with ``unmap`` it need not keep its blocks.

        Raises OSError if the disk fails, or ECANCELED: part of the range may be zero then.
        """
        end = offset + length
        first = -(-offset // self.sector) * self.sector
        last = end // self.sector * self.sector
        self._check_end(end)
        if first >= last:
            self._write_zeros(offset, length, cancelled)
            return
        self._write_zeros(offset, first - offset, cancelled)
        for at, count in _pieces(first, last - first):
            _check(cancelled)
            if not self._try(_BLKZEROOUT, _PUNCH_HOLE if unmap else _ZERO_RANGE, at, count):
                self._write_zeros(at, last - at, cancelled)
                break
        self._write_zeros(last, end - last, cancelled)

    def _write_zeros(self, offset: int, length: int, cancelled: Callable[[], bool]) -> None:
        """Write zeros the plain way, never beyond the image's end."""
        while length:
            _check(cancelled)
            self._check_end(offset + length)
            whole, rest = divmod(length, len(_ZEROS))
            parts = [_ZEROS] * min(whole, _ZERO_WRITES) or [_ZEROS[:rest]]
            count = os.pwritev(self.buffered_fd, parts, offset)
            offset += count
            length -= count

    def _check_end(self, end: int) -> None:
        """Raise OSError if the image was truncated to less than ``end``: a write would make it longer again."""
        if end > os.lseek(self.buffered_fd, 0, os.SEEK_END):
            raise OSError(errno.EIO, "the image is shorter than the disk", str(self.path))

    def _try(self, request: int, mode: int, offset: int, length: int) -> bool:
        """Have the block device (``request``) or the file system (``mode``) do it; return whether it can.

        Raises OSError if it can, and failed.
        """
        while True:
            try:
                if self.is_block:
                    fcntl.ioctl(self.buffered_fd, request, array.array("Q", (offset, length)))
                else:
                    self._fallocate(mode | _KEEP_SIZE, offset, length)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno in _REFUSED:
                    return False
                raise
            return True

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        if _libc.fallocate(self.buffered_fd, mode, offset, length):
            raise OSError(ctypes.get_errno(), "fallocate", str(self.path))

    def close(self, seconds: float | None = None) -> bool:
        """Make all durable, and close the file; return whether both were done within ``seconds`` (CLOSE_SECONDS).

        What could not be made durable was logged; see :attr:`lost`. May be called twice.
        """
        fds, self._fds = self._fds, []
        if not fds:
            return True
        self.fd = self.buffered_fd = -1
        deadline = time.monotonic() + (CLOSE_SECONDS if seconds is None else seconds)
        try:
            self.begin_sync()
            return self._syncer.close(fds, deadline)
        except RuntimeError as error:  # no thread
            log.error("image %s: it is closed without a sync: %s", self.path, error)
            for fd in fds:
                os.close(fd)
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fingerprint(data: bytes) -> int:
    """Return a hash of 64 bits, FNV-1a: hashlib would take 4 MiB of each device process for it."""
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return found


def _check_kind(path: Path, mode: int) -> None:
    """Raise Unavailable unless a file of that mode can be a disk."""
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a character device",
        stat.S_IFSOCK: "a socket",
    }
    kind = kinds.get(stat.S_IFMT(mode), "something else")
    raise Unavailable(f"the image {path} is {kind}: it must be a regular file or a block device")


def _check(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise OSError(errno.ECANCELED, "the request was cancelled")


def _pieces(offset: int, length: int) -> list[tuple[int, int]]:
    """Cut a range at the multiples of PIECE; empty if there is nothing in it."""
    end = offset + length
    pieces = []
    while offset < end:
        stop = min(end, (offset // PIECE + 1) * PIECE)
        pieces.append((offset, stop - offset))
        offset = stop
    return pieces


def _power_of_two(size: int, most: int) -> int:
    """Return the power of two at or below ``size``, from SECTOR to ``most``."""
    return min(max(SECTOR, 1 << max(0, size).bit_length() >> 1), max(SECTOR, most))


def _ask(fd: int, request: int) -> int:
    """Ask a block device for a number; 0 if it does not say."""
    answer = array.array("I", (0,))
    try:
        fcntl.ioctl(fd, request, answer)
    except OSError:
        return 0
    return answer[0]


def _knows_nowait(fd: int) -> bool:
    """Return whether a file's reads can be told not to wait."""
    try:
        os.preadv(fd, [bytearray(SECTOR)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return True


def _file_system(fd: int) -> int:
    """Return the type of a file's file system, as statfs(2) has it; 0 if it does not say."""
    answer = (ctypes.c_long * 32)()  # f_type comes first; the rest is less than that
    return int(answer[0]) if not _libc.fstatfs(fd, ctypes.byref(answer)) else 0


def _device_id(device: int) -> str:
    """Return what a block device says that it is, "" if it does not."""
    directory = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for name in ("dm/uuid", "wwid", "device/wwid", "device/serial", "loop/backing_file"):
        try:
            text = (directory / name).read_bytes().strip()
        except OSError:
            continue
        if text:
            return f"{name} {os.fsdecode(text)}"
    return ""


def _open(path: Path, flags: int) -> int:
    """Open a file; its access time, which costs each read a look, is kept only where Linux insists."""
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:  # not the owner's process, or no permission at all
        return os.open(path, flags)
