"""A file system in user space, with one file of zeros, whose reads and syncs hang or fail when a test wants it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import threading
from pathlib import Path
from typing import Final

_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE = 1, 2, 3, 4, 14, 15, 16
_RELEASE, _FSYNC, _FLUSH, _INIT, _INTERRUPT, _BATCH_FORGET = 18, 20, 25, 26, 36, 42
_HANGS: Final = {"read": _READ, "fsync": _FSYNC}
_SILENT: Final = frozenset({_FORGET, _INTERRUPT, _BATCH_FORGET})
_IN: Final = struct.Struct("<IIQQIIII")
_OUT: Final = struct.Struct("<IiQ")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ROOT, _FILE = 1, 2
_MAX_WRITE: Final = 1 << 17

_libc = ctypes.CDLL(None, use_errno=True)


class Fuse:
    """Mounted at ``mount`` until :meth:`close`; :attr:`file` is the file. Raises OSError where that is not allowed."""

    def __init__(self, mount: Path, size: int = 4 << 20) -> None:
        self.file = mount / "file"
        self.hanging = 0
        """Requests that wait for :meth:`answer`."""
        self.failed = 0
        """Requests that were refused, as :meth:`fail` has it."""
        self._mount = mount
        self._data = bytearray(size)
        self._hang = self._fail = 0
        self._waiting: list[tuple[int, int, bytes]] = []
        self._lock = threading.Lock()
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        if _libc.mount(b"fuse", os.fsencode(mount), b"fuse", 0, options.encode()):
            os.close(self._fd)
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._thread = threading.Thread(target=self._run, name="fuse", daemon=True)
        self._thread.start()

    def hang(self, what: str) -> None:
        """Answer no ``read`` or ``fsync`` from now on."""
        self._hang = _HANGS[what]

    def fail(self, what: str) -> None:
        """Answer each with EIO from now on."""
        self._fail = _HANGS[what]

    def answer(self) -> None:
        """Answer all that hang, and what comes."""
        with self._lock:
            self._hang = self._fail = 0
            waiting, self._waiting = self._waiting, []
        for request in waiting:
            self._handle(*request)
            self.hanging -= 1

    def answer_after(self, seconds: float) -> None:
        """Do that in another thread, after a while."""
        threading.Timer(seconds, self.answer).start()

    def close(self) -> None:
        """Answer all, and unmount."""
        self.answer()
        _libc.umount2(os.fsencode(self._mount), 2)  # MNT_DETACH
        self._thread.join(10)
        os.close(self._fd)

    def _run(self) -> None:
        while True:
            try:
                raw = os.read(self._fd, _MAX_WRITE + 8192)
            except InterruptedError:
                continue
            except OSError:  # unmounted
                return
            _, operation, unique, node, *_ = _IN.unpack_from(raw)
            request = operation, unique, struct.pack("<Q", node) + raw[_IN.size :]
            with self._lock:
                hangs = operation == self._hang
                if hangs:
                    self._waiting.append(request)
                    self.hanging += 1
            if not hangs:
                self._handle(*request)

    def _handle(self, operation: int, unique: int, body: bytes) -> None:
        node, argument = struct.unpack_from("<Q", body)[0], body[8:]
        if operation in _SILENT:
            return
        if operation == self._fail:
            self._reply(unique, error=errno.EIO)
            self.failed += 1
        elif operation == _INIT:
            self._reply(unique, struct.pack("<IIIIHHII", 7, 31, 65536, 0, 12, 10, _MAX_WRITE, 1).ljust(64, b"\0"))
        elif operation == _LOOKUP and argument == b"file\0":
            self._reply(unique, struct.pack("<QQQQII", _FILE, 0, 1, 1, 0, 0) + self._attributes(_FILE))
        elif operation in (_GETATTR, _SETATTR):
            self._reply(unique, struct.pack("<QII", 1, 0, 0) + self._attributes(node))
        elif operation == _OPEN:
            self._reply(unique, bytes(16))
        elif operation == _READ:
            _, offset, size = struct.unpack_from("<QQI", argument)
            self._reply(unique, bytes(self._data[offset : offset + size]))
        elif operation == _WRITE:
            _, offset, size = struct.unpack_from("<QQI", argument)
            self._data[offset : offset + size] = argument[40 : 40 + size]
            self._reply(unique, struct.pack("<II", size, 0))
        elif operation in (_FSYNC, _FLUSH, _RELEASE):
            self._reply(unique)
        else:
            self._reply(unique, error=errno.ENOENT if operation == _LOOKUP else errno.ENOSYS)

    def _attributes(self, node: int) -> bytes:
        mode, size = (0o40755, 0) if node == _ROOT else (0o100666, len(self._data))
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)

    def _reply(self, unique: int, data: bytes = b"", error: int = 0) -> None:
        with contextlib.suppress(OSError):  # nobody waits for it any more
            os.write(self._fd, _OUT.pack(_OUT.size + len(data), -error, unique) + data)
