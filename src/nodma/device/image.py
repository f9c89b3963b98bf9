"""A disk image as the block device uses it: a file or a block device, open in one of the cache modes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from nodma.errors import Unavailable
from nodma.spec.virtio_blk import SECTOR

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})
_ZEROS: Final = bytes(1 << 16)

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


class Image:
    """An open disk image. Offsets and lengths are bytes; a failing file raises OSError.

    ``fd`` is for reading and writing; ``buffered_fd`` goes through the page cache in every mode, for what O_DIRECT
    refuses.
    """

    def __init__(self, path: Path, *, read_only: bool = False, cache: Cache = Cache.WRITEBACK) -> None:
        """Open it. Raises UsageError if it is missing, not writable though it must be, or of an odd size, or if its
        file system does without O_DIRECT and the mode does not.
        """
        self.path = path
        self.read_only = read_only
        self.cache = cache
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        try:
            self.fd = self.buffered_fd = _open(path, flags)
        except FileNotFoundError:
            raise Unavailable(f"the image {path} does not exist: create one, for example by truncate -s 1G") from None
        except PermissionError:
            how = "read" if read_only else "written (with --read-only it need not be)"
            raise Unavailable(f"the image {path} cannot be {how}: permission denied") from None
        except OSError as error:
            raise Unavailable(f"the image {path} cannot be opened: {error.strerror}") from error
        try:
            mode = os.fstat(self.fd)
            self.is_block = stat.S_ISBLK(mode.st_mode)
            if not (self.is_block or stat.S_ISREG(mode.st_mode)):
                raise Unavailable(f"the image {path} is neither a file nor a block device")
            self.size: Final = os.lseek(self.fd, 0, os.SEEK_END)
            self.physical_block: Final = max(SECTOR, mode.st_blksize)
            if not self.size:
                raise Unavailable(f"the image {path} is empty: give it a size, for example by truncate -s 1G {path}")
            if self.size % SECTOR:
                raise Unavailable(
                    f"the image {path} has {self.size} bytes, no multiple of {SECTOR}:"
                    f" extend it by truncate -s %{SECTOR} {path}"
                )
            if cache is Cache.NONE:
                self.fd = self._open_direct(flags)
        except BaseException as error:
            os.close(self.buffered_fd)
            if isinstance(error, OSError):
                raise Unavailable(f"the image {path} has no size that can be told: {error.strerror}") from error
            raise

    def _open_direct(self, flags: int) -> int:
        try:
            return _open(self.path, flags | os.O_DIRECT)
        except OSError as error:
            raise Unavailable(
                f"the image {self.path} cannot be opened without the page cache: {error.strerror};"
                " its file system may not know O_DIRECT: use --cache writeback"
            ) from error

    def flush(self) -> None:
        """Make all that was written durable."""
        os.fdatasync(self.fd)

    def discard(self, offset: int, length: int) -> None:
        """Give the range back to the file system, where it can take it; what is read there is undefined."""
        try:
            if self.is_block:
                self._range_ioctl(_BLKDISCARD, offset, length)
            else:
                self._fallocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeros; with ``unmap`` it need not keep its blocks."""
        try:
            if self.is_block:
                self._range_ioctl(_BLKZEROOUT, offset, length)
            else:
                self._fallocate((_PUNCH_HOLE if unmap else _ZERO_RANGE) | _KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            while length:
                count = os.pwrite(self.buffered_fd, _ZEROS[:length], offset)
                offset += count
                length -= count

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        if _libc.fallocate(self.fd, mode, offset, length):
            raise OSError(ctypes.get_errno(), "fallocate", str(self.path))

    def _range_ioctl(self, request: int, offset: int, length: int) -> None:
        fcntl.ioctl(self.fd, request, offset.to_bytes(8, "little") + length.to_bytes(8, "little"))

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self.fd >= 0:
            for fd in {self.fd, self.buffered_fd}:
                os.close(fd)
            self.fd = self.buffered_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: Path, flags: int) -> int:
    """Open a file; its access time, which costs each read a look, is kept only for whom Linux demands it."""
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:  # not the owner's process, or no permission at all
        return os.open(path, flags)
