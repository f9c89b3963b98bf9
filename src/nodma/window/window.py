"""The window: shared memory of a fixed size, mapped once, handed out in bounded views."""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from typing import Final, Literal, Self

from nodma.errors import OutOfWindow, UsageError

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("nodma reads little-endian rings by native loads; this machine is big-endian")

Word = Literal["B", "H", "I", "Q"]

_SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Window:
    """``size`` bytes of shared memory, of which each access names an offset and a length in bytes.

    The device makes one with :meth:`create`; the driver maps the same memory with :meth:`adopt`, from
    the descriptor that the device's server hands out.
    """

    def __init__(self, fd: int, size: int, *, offset: int = 0) -> None:
        """Map ``size`` bytes from ``offset`` of ``fd``, and own ``fd`` from here on.

        Raises UsageError, the descriptor closed, if the file of ``fd`` is shorter than that.
        """
        self.fd = fd
        self.size = size
        try:
            have = os.fstat(fd).st_size
            if have < offset + size:
                raise UsageError(f"the memory offered as window has {have} bytes, not {offset + size}")
            self._map = mmap.mmap(fd, size, offset=offset)
            self._map.madvise(mmap.MADV_DONTDUMP)  # a guest's data has no place in a core file
        except BaseException:
            os.close(fd)
            raise
        self.bytes: Final = memoryview(self._map)
        """The whole window."""

    @classmethod
    def create(cls, size: int) -> Self:
        """Make a window of zeros.

        Its size is sealed: a peer that holds the descriptor cannot shrink the memory under the device,
        which would end the device at its next access.
        """
        fd = os.memfd_create("nodma-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS | fcntl.F_SEAL_SEAL)
        return cls(fd, size)

    @classmethod
    def adopt(cls, fd: int, size: int, *, offset: int = 0) -> Self:
        """Map a window that somebody else made; ``fd`` is owned from here on."""
        return cls(fd, size, offset=offset)

    @property
    def sealed(self) -> bool:
        """Whether nobody can resize the memory any more."""
        try:
            return fcntl.fcntl(self.fd, fcntl.F_GET_SEALS) & _SIZE_SEALS == _SIZE_SEALS
        except OSError:  # no memfd: a file, or a PCI resource
            return False

    def view(self, offset: int, length: int) -> memoryview:
        """Return ``length`` bytes from ``offset`` on. Raises OutOfWindow, overflow included."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfWindow(f"{length:#x} bytes at {offset:#x} do not lie in a window of {self.size:#x} bytes")
        return self.bytes[offset : offset + length]

    def words(self, word: Word, offset: int, count: int) -> memoryview:
        """Return ``count`` machine words (B, H, I, Q: 1, 2, 4, 8 bytes each) from ``offset`` on.

        Loads and stores of a cast view's items are single instructions: an index that is stored through
        one is never seen half or cleared by the other end.
        """
        return self.view(offset, count * _WORD_BYTES[word]).cast(word)

    def close(self) -> None:
        """Unmap, as far as no view is still held, and close the descriptor. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            try:
                self.bytes.release()
                self._map.close()
            except BufferError:
                pass  # somebody still holds a view: the mapping goes with the last of them

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_WORD_BYTES: Final[dict[str, int]] = {"B": 1, "H": 2, "I": 4, "Q": 8}
