"""What the process of a function and the keeper of its slot's shared pool tell each other: version 1.

The socket is of type SOCK_SEQPACKET; each packet is one structure. docs/shared-pools.md describes the protocol.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from nodma.spec.layout import Layout, le16, le32, le64

VERSION: Final = 1
NO_GENERATION: Final = 0
"""The generation of no window."""


class KeeperCommand(IntEnum):
    """What a process asks for."""

    LEND = 1
    """The generation that there is now, and a descriptor of its window if ``generation`` is another."""
    RENEW = 2
    """The same, after a fresh window of zeros was made. The owner of the pool may ask for it."""


class KeeperStatus(IntEnum):
    """How a request went."""

    OK = 0
    BAD_VERSION = 1
    """The keeper speaks another version, the one in its reply."""
    BAD_COMMAND = 2
    """There is no such command, or the packet has another size."""
    NOT_OWNER = 3
    """Only the owner of the pool may ask for that."""
    FAILED = 4
    """The keeper has no memory or no descriptor left; ask again later."""


class KeeperRequest(Layout):
    """A request; ``id`` comes back in its reply."""

    version = le16(VERSION)
    command = le16()
    id = le32()
    generation = le64(NO_GENERATION)


class KeeperReply(Layout):
    """A reply; one descriptor of the window comes along if it is another than the one asked about."""

    version = le16(VERSION)
    status = le16()
    id = le32()
    generation = le64()
