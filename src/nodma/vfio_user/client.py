"""The client's end of vfio-user: what a VMM does, for drivers, tools and tests. It blocks."""

from __future__ import annotations

import array
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from nodma.errors import Disconnected, ProtocolError, Refused, Unavailable
from nodma.spec.layout import Layout
from nodma.spec.vfio_user import (
    DEFAULT_MAX_FDS,
    DEFAULT_MAX_TRANSFER,
    DEFAULT_PAGE_SIZES,
    MAJOR,
    MINOR,
    TYPE_COMMAND,
    TYPE_MASK,
    TYPE_REPLY,
    Cmd,
    DeviceInfo,
    DmaFlag,
    DmaMap,
    DmaUnmap,
    Header,
    IoFdType,
    IrqInfo,
    IrqSet,
    IrqSetFlag,
    MsgFlag,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    SubRegionIoFd,
    Version,
)
from nodma.vfio_user.connection import MAX_FDS

TIMEOUT_SECONDS: Final = 10.0
"""How long a server may take to answer."""
_PATIENCE_SECONDS: Final = TIMEOUT_SECONDS * 0.9
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_HEADER: Final = Header.codec
_HEADER_BYTES: Final = Header.size
_ACCESS: Final = RegionAccess.codec
_ACCESS_BYTES: Final = RegionAccess.size
_NO_REPLY: Final = int(TYPE_COMMAND | MsgFlag.NO_REPLY)
_MAX_REPLY: Final = 2 * DEFAULT_MAX_TRANSFER

L = TypeVar("L", bound=Layout)


@dataclass(frozen=True, slots=True)
class RegionReply:
    """What a server says of a region; ``fd``, if it can be mapped from ``offset`` on, is the caller's."""

    size: int
    flags: RegionFlag
    offset: int
    fd: int | None


@dataclass(frozen=True, slots=True)
class IoEventFd:
    """A part of a region, in bytes, that is written to by signalling ``fd``, which is the caller's."""

    offset: int
    size: int
    fd: int


class Client:
    """A connection to a vfio-user server, negotiated.

    Methods raise Refused when the server answers with an error, Disconnected when it is gone or takes
    longer than ten seconds, and ProtocolError when it answers nonsense.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Negotiate over a connected socket, and own it."""
        self._sock = sock
        sock.settimeout(TIMEOUT_SECONDS)
        self._msg_id = 0
        self.capabilities: dict[str, Any] = {}
        """What the server agreed to."""
        try:
            self._negotiate()
            self.max_transfer = self._limit("max_data_xfer_size", DEFAULT_MAX_TRANSFER)
            self.max_fds = self._limit("max_msg_fds", DEFAULT_MAX_FDS)
            request = bytes(DeviceInfo.new(argsz=DeviceInfo.size))
            info = self._structure(DeviceInfo, self._call(Cmd.DEVICE_GET_INFO, request))
        except BaseException:
            sock.close()
            raise
        self.regions = info.num_regions
        """How many regions the device has."""
        self.irqs = info.num_irqs
        """How many interrupt indexes it has."""

    @classmethod
    def connect(cls, path: Path | str) -> Self:
        """Connect to the server that listens at ``path``. Raises UsageError if none does."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(TIMEOUT_SECONDS)
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise Unavailable(f"cannot connect to {path}: {error.strerror or error}; is the server running?") from error
        return cls(sock)

    def _negotiate(self) -> None:
        proposal = {
            "max_msg_fds": MAX_FDS,
            "max_data_xfer_size": DEFAULT_MAX_TRANSFER,
            "pgsizes": DEFAULT_PAGE_SIZES,
        }
        body = Version.codec.pack(MAJOR, MINOR) + json.dumps({"capabilities": proposal}).encode() + b"\0"
        try:
            answer = self._call(Cmd.VERSION, body)
        except Disconnected as error:
            raise Disconnected(f"{error}; it may be serving another client, and it serves one at a time") from error
        try:
            if Version(answer).major != MAJOR:
                raise ValueError("another version")
            text = answer[Version.size :].rstrip(b"\0").decode()
            self.capabilities = dict(json.loads(text or "{}").get("capabilities", {}))
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise ProtocolError(f"the server's VERSION cannot be understood: {error}") from error

    def _limit(self, name: str, default: int) -> int:
        """Return a limit that the server set. Raises ProtocolError if nothing can be done within it."""
        limit = self.capabilities.get(name, default)
        if type(limit) is not int or limit < 1:
            raise ProtocolError(f"the server's VERSION has an unusable {name}: {limit!r}")
        return limit

    def region_info(self, index: int) -> RegionReply:
        """Ask for a region: its size in bytes, what can be done with it."""
        request = bytes(RegionInfo.new(argsz=RegionInfo.size, index=index))
        body, fds = self._exchange(Cmd.DEVICE_GET_REGION_INFO, request)
        info = self._structure(RegionInfo, body)
        for extra in fds[1:]:
            os.close(extra)
        return RegionReply(info.size_bytes, RegionFlag(info.flags), info.offset, fds[0] if fds else None)

    def region_io_fds(self, index: int) -> list[IoEventFd]:
        """Ask which parts of a region can be written to by eventfd, whatever the value written."""
        request = RegionIoFds.new(argsz=RegionIoFds.size, index=index)
        answer = self._structure(RegionIoFds, self._call(Cmd.DEVICE_GET_REGION_IO_FDS, bytes(request)))
        if answer.argsz <= RegionIoFds.size:
            return []
        request.argsz = answer.argsz
        body, fds = self._exchange(Cmd.DEVICE_GET_REGION_IO_FDS, bytes(request))
        try:
            count = self._structure(RegionIoFds, body).count
            if len(body) != RegionIoFds.size + count * SubRegionIoFd.size:
                raise ProtocolError(f"the server reported {count} sub-regions but sent {len(body)} bytes")
            parts = [SubRegionIoFd(body, RegionIoFds.size + place * SubRegionIoFd.size) for place in range(count)]
            if any(part.fd_index >= len(fds) for part in parts):
                raise ProtocolError("the server reported sub-regions but did not send their descriptors")
            simple = [part for part in parts if part.type == IoFdType.IOEVENTFD and not part.flags]
            return [IoEventFd(part.offset, part.size_bytes, os.dup(fds[part.fd_index])) for part in simple]
        finally:
            for fd in fds:
                os.close(fd)

    def irq_count(self, index: int) -> int:
        """Ask how many interrupts an index has."""
        request = bytes(IrqInfo.new(argsz=IrqInfo.size, index=index))
        return self._structure(IrqInfo, self._call(Cmd.DEVICE_GET_IRQ_INFO, request)).count

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read ``count`` bytes, in as many messages as that takes."""
        parts = []
        while count > 0:
            step = min(count, self.max_transfer)
            body = self._call(Cmd.REGION_READ, _ACCESS.pack(offset, region, step))
            if len(body) != _ACCESS_BYTES + step:
                raise ProtocolError(f"REGION_READ of {step} bytes was answered with {len(body) - _ACCESS_BYTES}")
            parts.append(body[_ACCESS_BYTES:])
            offset, count = offset + step, count - step
        return b"".join(parts)

    def region_write(self, region: int, offset: int, data: bytes, *, reply: bool = True) -> None:
        """Write ``data``; without ``reply`` nobody learns whether that worked, and nobody waits."""
        for at in range(0, len(data), self.max_transfer):
            part = data[at : at + self.max_transfer]
            body = _ACCESS.pack(offset + at, region, len(part)) + part
            if reply:
                self._call(Cmd.REGION_WRITE, body)
            else:
                self._post(Cmd.REGION_WRITE, body)

    def set_eventfds(self, index: int, start: int, eventfds: Sequence[int]) -> None:
        """Have interrupts signal eventfds, which stay the caller's; none at all disables the index."""
        flags = (IrqSetFlag.DATA_EVENTFD if eventfds else IrqSetFlag.DATA_NONE) | IrqSetFlag.ACTION_TRIGGER
        for at in range(0, len(eventfds) or 1, self.max_fds):
            fds = eventfds[at : at + self.max_fds]
            request = IrqSet.new(argsz=IrqSet.size, flags=flags, index=index, start=start + at, count=len(fds))
            self._call(Cmd.DEVICE_SET_IRQS, bytes(request), fds)

    def act_on_irqs(self, index: int, start: int, count: int, action: IrqSetFlag) -> None:
        """Mask, unmask or trigger interrupts."""
        flags = IrqSetFlag.DATA_NONE | action
        request = IrqSet.new(argsz=IrqSet.size, flags=flags, index=index, start=start, count=count)
        self._call(Cmd.DEVICE_SET_IRQS, bytes(request))

    def dma_map(self, address: int, size: int, *, fd: int | None = None, offset: int = 0) -> None:
        """Tell the server about memory that it may access, as a VMM does with its guest's."""
        request = DmaMap.new(
            argsz=DmaMap.size, flags=DmaFlag.READ | DmaFlag.WRITE, offset=offset, address=address, size_bytes=size
        )
        self._call(Cmd.DMA_MAP, bytes(request), () if fd is None else (fd,))

    def dma_unmap(self, address: int, size: int) -> None:
        """Take such memory back."""
        self._call(Cmd.DMA_UNMAP, bytes(DmaUnmap.new(argsz=DmaUnmap.size, address=address, size_bytes=size)))

    def reset(self) -> None:
        """Reset the device."""
        self._call(Cmd.DEVICE_RESET, b"")

    def close(self) -> None:
        """Disconnect."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, command: Cmd, body: bytes, fds: Sequence[int] = ()) -> bytes:
        """Send a command and give its reply's payload; descriptors that come with it are closed."""
        answer, unwanted = self._exchange(command, body, fds)
        for fd in unwanted:
            os.close(fd)
        return answer

    def _exchange(self, command: Cmd, body: bytes, fds: Sequence[int] = ()) -> tuple[bytes, list[int]]:
        msg_id = self._msg_id = (self._msg_id + 1) & 0xFFFF
        message = _HEADER.pack(msg_id, command, _HEADER_BYTES + len(body), TYPE_COMMAND, 0) + body
        deadline = time.monotonic() + TIMEOUT_SECONDS
        try:
            self._send(message, fds)
            return self._reply(command, msg_id, deadline)
        except TimeoutError as error:
            raise Disconnected(f"the server did not answer {command.name} within {TIMEOUT_SECONDS:g} s") from error
        except OSError as error:
            raise Disconnected(f"the server is gone: {error.strerror or error}") from error

    def _post(self, command: Cmd, body: bytes) -> None:
        message = _HEADER.pack(0, command, _HEADER_BYTES + len(body), _NO_REPLY, 0) + body
        try:
            self._sock.sendall(message)
        except OSError as error:
            raise Disconnected(f"the server is gone: {error.strerror or error}") from error

    def _send(self, message: bytes, fds: Sequence[int]) -> None:
        if fds:
            message = message[socket.send_fds(self._sock, [message], list(fds)) :]
        self._sock.sendall(message)

    def _reply(self, command: Cmd, msg_id: int, deadline: float) -> tuple[bytes, list[int]]:
        """Receive the reply to one command. The server sends nothing else, so it is the next message."""
        header, fds = self._receive(_HEADER_BYTES, deadline)
        try:
            answered, kind, size, flags, errno = _HEADER.unpack(header)
            if flags & TYPE_MASK != TYPE_REPLY or answered != msg_id or kind != command:
                raise ProtocolError(f"the server answered {command.name} with message {kind}, flags {flags:#x}")
            if not _HEADER_BYTES <= size <= _MAX_REPLY:
                raise ProtocolError(f"the server answered {command.name} with {size} bytes")
            body, more = self._receive(size - _HEADER_BYTES, deadline)
            fds += more
            if flags & MsgFlag.ERROR:
                raise Refused(command.name, errno)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return body, fds

    def _receive(self, count: int, deadline: float) -> tuple[bytes, list[int]]:
        """Receive exactly so many bytes, and the descriptors that come with them.

        Raises TimeoutError if they are not here at the ``deadline`` (time.monotonic), however they are dealt out.
        """
        data = bytearray(count)
        view = memoryview(data)
        fds = array.array("i")
        try:
            while view:
                view = view[self._receive_some(view, fds, deadline) :]
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return bytes(data), list(fds)

    def _receive_some(self, view: memoryview, fds: array.array[int], deadline: float) -> int:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if left < _PATIENCE_SECONDS:  # the socket's own timeout is TIMEOUT_SECONDS: it is set for the rest only
            self._sock.settimeout(left)
        try:
            got, ancillary, _, _ = self._sock.recvmsg_into([view], _ANCILLARY)
        finally:
            if left < _PATIENCE_SECONDS:
                self._sock.settimeout(TIMEOUT_SECONDS)
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
        if not got:
            raise Disconnected("the server closed the connection")
        return got

    @staticmethod
    def _structure(layout: type[L], body: bytes) -> L:
        try:
            return layout(body)
        except ValueError as error:
            raise ProtocolError(f"the server's answer is too short: {error}") from error
