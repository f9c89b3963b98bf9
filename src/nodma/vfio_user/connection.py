"""A client's socket as messages: :class:`Connection`, in the build of ``stream.py`` that is to be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nodma import builds

if TYPE_CHECKING:
    from nodma.vfio_user.stream import MAX_FDS, RECEIVE_TIMEOUT, Connection, Message
else:
    _stream = builds.load("nodma.vfio_user.stream")
    MAX_FDS = _stream.MAX_FDS
    RECEIVE_TIMEOUT = _stream.RECEIVE_TIMEOUT
    Connection = _stream.Connection
    Message = _stream.Message

__all__ = ["MAX_FDS", "RECEIVE_TIMEOUT", "Connection", "Message"]
