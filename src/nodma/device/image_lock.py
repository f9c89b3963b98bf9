"""Keep others out of an image, and keep out of theirs, by the locks that QEMU uses for its images.

QEMU (block/file-posix.c) locks single bytes of an image with open file description locks. The byte
``_USES + permission`` says that somebody uses that permission, ``_REFUSES + permission`` that somebody does not let
others use it. All locks are shared locks, and whoever takes a permission tests, with an exclusive lock, that nobody
refuses it. A crash releases them, and so does closing the file; a fork keeps them.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from enum import IntEnum
from pathlib import Path
from typing import Final

from nodma.errors import Unavailable

_USES: Final = 100
_REFUSES: Final = 200
_FLOCK: Final = struct.Struct("hhqqi0q")
"""struct flock: type, whence, start, length, pid."""


class Permission(IntEnum):
    """What a user of an image does to it, as QEMU numbers it."""

    READ = 0
    WRITE = 1


def lock_image(fd: int, path: Path, *, writable: bool) -> None:
    """Lock an open image until ``fd`` is closed: for one writer, or for any number of readers.

    Raises Unavailable if somebody else has it in a way that this excludes, or if its file system has no locks.
    """
    uses = (Permission.READ, Permission.WRITE) if writable else (Permission.READ,)
    try:
        for permission in uses:
            _set(fd, _USES + permission)
        _set(fd, _REFUSES + Permission.WRITE)
        if any(_is_held(fd, _REFUSES + permission) for permission in uses):
            raise Unavailable(_busy(path, "it does not let others " + ("write to it" if writable else "use it")))
        if _is_held(fd, _USES + Permission.WRITE):
            raise Unavailable(_busy(path, "it writes to it"))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise Unavailable(_busy(path, "it has it exclusively")) from error
        raise Unavailable(
            f"cannot lock the image {path}: {error.strerror}; use --no-lock if nobody else uses it"
        ) from error


def _busy(path: Path, why: str) -> str:
    return (
        f"the image {path} is in use: another process or function (nodma or QEMU) has it open, and {why}."
        " End that first; --no-lock serves it all the same, which destroys its file systems if both write"
    )


def _set(fd: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))


def _is_held(fd: int, byte: int) -> bool:
    """Return whether another open file description holds a lock of a byte."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
