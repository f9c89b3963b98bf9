"""Write files where a guest will find them: into a cpio archive that its kernel unpacks at boot, or into a directory.

The archive is an initramfs: the "newc" format, uncompressed. One file may hold several archives, one after another; the
kernel unpacks all of them, in order.
"""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, Protocol

_TRAILER: Final = "TRAILER!!!"
_ALIGN: Final = 4


class Sink(Protocol):
    """Where files go. Paths are relative to the guest's root."""

    def add(self, path: str, content: bytes | Path, *, executable: bool = False) -> None:
        """Add a file, with the directories above it."""

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""

    def directory(self, path: str) -> None:
        """Add a directory, unless it is there."""


class Tree:
    """A directory of this machine, to make a guest's root file system of."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, path: str, content: bytes | Path, *, executable: bool = False) -> None:
        """Add a file, with the directories above it."""
        self.directory(str(PurePosixPath(path).parent))
        place = self._root / path
        place.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
        place.chmod(0o755 if executable else 0o644)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link, unless something is there."""
        self.directory(str(PurePosixPath(path).parent))
        if not (self._root / path).is_symlink():
            (self._root / path).symlink_to(target)

    def directory(self, path: str) -> None:
        """Add a directory, unless it is there."""
        (self._root / path).mkdir(parents=True, exist_ok=True)


class Archive:
    """An archive that is being written to ``file``; all that is in it belongs to root."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._made = {PurePosixPath(".")}
        self._inode = 0

    def add(self, path: str, content: bytes | Path, *, executable: bool = False) -> None:
        """Add a file, with the directories above it."""
        data = content.read_bytes() if isinstance(content, Path) else content
        self._parents(path)
        self._entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def directory(self, path: str) -> None:
        """Add a directory, unless it is there."""
        place = PurePosixPath(path)
        if place not in self._made:
            self._parents(path)
            self._made.add(place)
            self._entry(path, stat.S_IFDIR | 0o755, b"")

    def close(self) -> None:
        """Write the end."""
        self._entry(_TRAILER, 0, b"")

    def _parents(self, path: str) -> None:
        for parent in reversed(PurePosixPath(path).parents):
            self.directory(str(parent))

    def _entry(self, path: str, mode: int, data: bytes) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        numbers = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        self._padded(b"070701" + b"".join(b"%08X" % number for number in numbers) + name)
        self._padded(data)

    def _padded(self, data: bytes) -> None:
        self._file.write(data)
        self._file.write(bytes(-len(data) % _ALIGN))
