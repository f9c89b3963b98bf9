"""Every exception that nodma raises, and how they relate.

::

    NodmaError
    ├── UsageError            what was asked for makes no sense: a bad size, an unknown key
    │   └── Unavailable       ... or makes sense, but not here and now: a missing image, a socket in use
    ├── OutOfWindow           an offset and length that do not lie inside the window
    ├── PoolTooSmall          a mapping that this pool could never hold, even when empty
    ├── BadRing               a number in a virtqueue that no correct driver writes
    │   └── OutsideAddress    ... namely an address outside the window
    ├── ProtocolError         the other end of a vfio-user socket broke the protocol
    │   └── Refused           ... or answered a command with an errno
    ├── GuestError            a guest, or a tool that it is made with, failed
    ├── Disconnected          the other end of the socket is gone
    └── ProbeError            what was found at an address is not a device we can drive
        ├── NegotiationError  ... it refused the features, or offers too few
        └── DeviceFailed      ... it set DEVICE_NEEDS_RESET, or answered a request with nonsense

Messages say what was wrong, where, and what to do about it.
"""

from __future__ import annotations

import os


class NodmaError(Exception):
    """The root of nodma's exceptions."""


class UsageError(NodmaError):
    """What the caller asked for cannot be done; the message says what can. A command exits with 2."""


class Unavailable(UsageError):
    """What the caller asked for needs a file, a socket, a tool or a right that is missing. A command exits with 1."""


class OutOfWindow(NodmaError):
    """An offset and length do not lie inside the window: nothing was touched."""


class PoolTooSmall(NodmaError):
    """A mapping is larger than the pool could ever hold."""


class BadRing(NodmaError):
    """The driver's end of a virtqueue holds a number that no correct driver writes.

    The device that meets one sets DEVICE_NEEDS_RESET (virtio 1.4, 2.1.2) and follows nothing of it.
    """


class OutsideAddress(BadRing):
    """A virtqueue names an address outside the window (SW-D2, DMB-D2); it was not followed."""

    def __init__(self, message: str, address: int, length: int) -> None:
        super().__init__(message)
        self.address = address
        self.length = length


class ProtocolError(NodmaError):
    """The peer sent what the vfio-user protocol does not allow."""


class Refused(ProtocolError):
    """The peer answered a command with an error; ``errno`` says which (0 if it did not)."""

    def __init__(self, command: str, errno: int) -> None:
        reason = os.strerror(errno) if errno else "no reason given"
        super().__init__(f"the server refused {command}: {reason} (errno {errno})")
        self.errno = errno


class GuestError(NodmaError):
    """A guest failed, or a tool that fetches or builds what it needs; the message has the log's last lines."""


class Disconnected(NodmaError):
    """The other end of the socket is gone."""


class ProbeError(NodmaError):
    """What was found is not a device that this driver can use."""


class NegotiationError(ProbeError):
    """Driver and device found no set of features that both can work with."""


class DeviceFailed(ProbeError):
    """The device asked for a reset, or broke its side of a virtqueue."""
