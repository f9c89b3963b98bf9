"""How a connection receives and sends, for the interpreted run. Compiled, the same names come from ``sockets.pxd``."""

from __future__ import annotations

import array
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from nodma.spec.vfio_user import Header, RegionAccess

ACCESS_MESSAGE: Final = struct.Struct(Header.codec.format + RegionAccess.codec.format.removeprefix("<"))
"""A REGION_READ, or a REGION_WRITE without its data, header and all."""
_FD_BYTES: Final = array.array("i").itemsize

load_access: Callable[[memoryview, int], tuple[int, int, int, int, int, int, int, int]] = ACCESS_MESSAGE.unpack_from
"""Load the fields of such a message at an offset that has room for them."""


pack_access: Callable[[int, int, int, int, int, int, int, int], bytes] = ACCESS_MESSAGE.pack
"""Make such a message of its fields."""
now: Callable[[], float] = time.monotonic
send: Callable[[socket.socket, bytes | memoryview, int], int] = socket.socket.send
"""Send with flags; give how many bytes that were. Raises OSError."""


def handle(sock: socket.socket) -> socket.socket:
    """Return what :func:`receive` and :func:`send` take for a socket; compiled, its descriptor."""
    return sock


def receive(sock: socket.socket, buffer: memoryview, at: int, flags: int, ancillary: int, fds: list[int]) -> int:
    """Receive into ``buffer`` from ``at`` on; ``fds`` gets the descriptors that fit ``ancillary`` bytes (CMSG_SPACE).

    Gives the bytes that came, 0 at the end of the stream. Raises OSError, BlockingIOError if there are none now.
    """
    count, came, _, _ = sock.recvmsg_into([buffer[at:] if at else buffer], ancillary, flags)
    for level, kind, data in came:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += array.array("i", data[: len(data) - len(data) % _FD_BYTES])
    return count
