"""A disk image as the block device uses it: a file or a block device, read and written in place."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from nodma.errors import UsageError
from nodma.spec.virtio_blk import SECTOR

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})
_ZEROS: Final = bytes(1 << 16)
_IOV_MAX: Final = 1024

_Transfer = Callable[[int, list[memoryview], int], int]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Image:
    """An open disk image. Offsets and lengths are bytes; a failing file raises OSError."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open it. Raises UsageError if it is missing, not writable though it must be, or of an odd size."""
        self.path = path
        self.read_only = read_only
        try:
            self.fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except FileNotFoundError:
            raise UsageError(f"the image {path} does not exist: create one, for example by truncate -s 1G") from None
        except PermissionError:
            how = "read" if read_only else "written (with --read-only it need not be)"
            raise UsageError(f"the image {path} cannot be {how}: permission denied") from None
        except OSError as error:
            raise UsageError(f"the image {path} cannot be opened: {error.strerror}") from error
        try:
            mode = os.fstat(self.fd)
            self.is_block = stat.S_ISBLK(mode.st_mode)
            if not (self.is_block or stat.S_ISREG(mode.st_mode)):
                raise UsageError(f"the image {path} is neither a file nor a block device")
            self.size: Final = os.lseek(self.fd, 0, os.SEEK_END)
            self.physical_block: Final = max(SECTOR, mode.st_blksize)
            if not self.size:
                raise UsageError(f"the image {path} is empty: give it a size, for example by truncate -s 1G {path}")
            if self.size % SECTOR:
                raise UsageError(
                    f"the image {path} has {self.size} bytes, no multiple of {SECTOR}:"
                    f" extend it by truncate -s %{SECTOR} {path}"
                )
        except BaseException as error:
            os.close(self.fd)
            if isinstance(error, OSError):
                raise UsageError(f"the image {path} has no size that can be told: {error.strerror}") from error
            raise

    def read(self, views: list[memoryview], offset: int, length: int) -> bool:
        """Fill ``views``, ``length`` bytes in all, from ``offset`` on; False if the file ends before."""
        if len(views) <= _IOV_MAX and os.preadv(self.fd, views, offset) == length:
            return True
        return self._by_pieces(os.preadv, views, offset, length)

    def write(self, views: list[memoryview], offset: int, length: int) -> bool:
        """Write ``views``, ``length`` bytes in all, at ``offset``; False if the file takes no more."""
        if len(views) <= _IOV_MAX and os.pwritev(self.fd, views, offset) == length:
            return True
        return self._by_pieces(os.pwritev, views, offset, length)

    def _by_pieces(self, call: _Transfer, views: list[memoryview], offset: int, length: int) -> bool:
        """Transfer what one call did not, which may be all of it again."""
        done = 0
        while done < length:
            step = call(self.fd, _behind(views, done)[:_IOV_MAX], offset + done)
            if step <= 0:
                return False
            done += step
        return True

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
                count = os.pwrite(self.fd, _ZEROS[:length], offset)
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
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _behind(views: list[memoryview], skip: int) -> list[memoryview]:
    """Give what is left of ``views`` behind their first ``skip`` bytes."""
    rest = []
    for view in views:
        if skip >= len(view):
            skip -= len(view)
        else:
            rest.append(view[skip:])
            skip = 0
    return rest
