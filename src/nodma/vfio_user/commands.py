"""A client's commands, carried out: from a message to the reply that it gets.

The server sends replies and nothing else: no DMA_READ, no DMA_WRITE, ever.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from nodma.spec.layout import Layout
from nodma.spec.vfio_user import (
    DEFAULT_MAX_DMA_MAPS,
    DEFAULT_MAX_FDS,
    DEFAULT_MAX_TRANSFER,
    DEFAULT_PAGE_SIZES,
    MAJOR,
    MINOR,
    TYPE_COMMAND,
    TYPE_MASK,
    TYPE_REPLY,
    Cmd,
    DeviceFlag,
    DeviceInfo,
    DmaMap,
    DmaUnmap,
    Header,
    IoFdType,
    Irq,
    IrqFlag,
    IrqInfo,
    IrqSet,
    IrqSetFlag,
    MsgFlag,
    MultiWrite,
    Region,
    RegionAccess,
    RegionFlag,
    RegionInfo,
    RegionIoFds,
    SubRegionIoFd,
    UnmapFlag,
    Version,
    WriteMulti,
)
from nodma.vfio_user.connection import MAX_FDS, Message
from nodma.vfio_user.endpoint import Endpoint
from nodma.vfio_user.failure import errno_of
from nodma.vfio_user.guard import DmaGuard

log = logging.getLogger(__name__)

_HEADER: Final = Header.codec
_HEADER_BYTES: Final = Header.size
_ACCESS: Final = RegionAccess.codec
_ACCESS_BYTES: Final = RegionAccess.size
_REPLY_ERROR: Final = int(TYPE_REPLY | MsgFlag.ERROR)
_NO_REPLY: Final = int(MsgFlag.NO_REPLY)
_MAX_MULTI: Final = 4096
_REGISTER_BYTES: Final = 8
"""Bytes of the widest register."""
_MAX_CAPABILITIES: Final = 16 << 10
"""Bytes of JSON in a VERSION message; QEMU's are some 200."""
_UNSUPPORTED: Final = frozenset(
    {
        Cmd.DMA_READ,
        Cmd.DMA_WRITE,
        Cmd.DEVICE_FEATURE,
        Cmd.MIG_DATA_READ,
        Cmd.MIG_DATA_WRITE,
    }
)

_OWN_CAPABILITIES: Final[Mapping[str, int | bool]] = {
    "max_msg_fds": MAX_FDS,
    "max_data_xfer_size": DEFAULT_MAX_TRANSFER,
    "max_dma_maps": DEFAULT_MAX_DMA_MAPS,
    "pgsizes": DEFAULT_PAGE_SIZES,
    "write_multiple": True,
}


L = TypeVar("L", bound=Layout)
Reply = tuple[bytes, list[int]]
_NOTHING: Final[Reply] = (b"", [])


class Commands:
    """The commands of one client to ``endpoint``, from VERSION on."""

    def __init__(self, endpoint: Endpoint, guard: DmaGuard) -> None:
        self.endpoint = endpoint
        self.guard = guard
        self.negotiated = False
        """Whether the client has proposed a version that was agreed to."""
        self.rejected = False
        """Whether it proposed one that cannot be: the connection ends when it has its answer."""
        self._refused = 0  # descriptors of the current message that are not eventfds, and were closed
        self._peer_transfer = DEFAULT_MAX_TRANSFER
        self._peer_fds = DEFAULT_MAX_FDS
        self._commands: dict[int, Callable[[memoryview, list[int]], Reply]] = {
            Cmd.DMA_MAP: self._dma_map,
            Cmd.DMA_UNMAP: self._dma_unmap,
            Cmd.DEVICE_GET_INFO: self._device_info,
            Cmd.DEVICE_GET_REGION_INFO: self._region_info,
            Cmd.DEVICE_GET_REGION_IO_FDS: self._region_io_fds,
            Cmd.DEVICE_GET_IRQ_INFO: self._irq_info,
            Cmd.DEVICE_SET_IRQS: self._set_irqs,
            Cmd.DEVICE_RESET: self._reset,
            Cmd.REGION_READ: self._region_read,
            Cmd.REGION_WRITE: self._region_write,
            Cmd.REGION_WRITE_MULTI: self._region_write_multi,
        }

    @property
    def access_limit(self) -> int:
        """Bytes that an access may have which the connection answers by itself; -1 as long as it may not."""
        return min(_REGISTER_BYTES, self._peer_transfer) if self.negotiated else -1

    def answer(self, message: Message) -> Reply | None:
        """Carry a message out, and give the whole reply, if it wants one.

        Descriptors that the message brought and a command took are gone from its list after that.
        """
        msg_id, command, flags, payload, fds, refused = message
        if flags & TYPE_MASK == TYPE_REPLY:
            log.debug("ignored a reply to no request")
            return None
        try:
            if flags & TYPE_MASK != TYPE_COMMAND:
                raise OSError(errno.EINVAL, f"unexpected message type {flags & TYPE_MASK}")
            if payload is None:
                raise OSError(errno.EINVAL, "a message that is too long")
            if not self.negotiated:
                body, out = self._version(command, payload)
            elif handler := self._commands.get(command):
                self._refused = refused
                body, out = handler(payload, fds)
            else:
                raise OSError(errno.ENOTSUP if command in _UNSUPPORTED else errno.EINVAL, f"command {command}")
        except Exception as error:
            failed = errno_of(error, msg_id, command)
        else:
            if flags & _NO_REPLY:
                return None
            return _HEADER.pack(msg_id, command, _HEADER_BYTES + len(body), TYPE_REPLY, 0) + body, out
        if flags & _NO_REPLY:
            return None
        return _HEADER.pack(msg_id, command, _HEADER_BYTES, _REPLY_ERROR, failed), []

    # Commands: each gives the reply's payload and descriptors, or raises OSError with the errno to answer.

    def _version(self, command: int, payload: memoryview) -> Reply:
        """Agree on version and capabilities: major 0, and no capability that the client did not name."""
        try:
            if command != Cmd.VERSION:
                raise OSError(errno.EINVAL, f"command {command} before VERSION")
            version = _parse(Version, payload)
            if version.major != MAJOR:
                raise OSError(errno.EINVAL, f"version {version.major}.{version.minor} is not {MAJOR}.{MINOR}")
            proposed = _capabilities(bytes(payload[Version.size :]))
        except OSError:
            self.rejected = True
            raise
        self._peer_transfer = min(DEFAULT_MAX_TRANSFER, proposed.get("max_data_xfer_size", DEFAULT_MAX_TRANSFER))
        self._peer_fds = min(MAX_FDS, proposed.get("max_msg_fds", DEFAULT_MAX_FDS))
        self.negotiated = True
        agreed = {name: value for name, value in _OWN_CAPABILITIES.items() if name in proposed}
        if not proposed.get("write_multiple", True):
            del agreed["write_multiple"]
        return Version.codec.pack(MAJOR, MINOR) + json.dumps({"capabilities": agreed}).encode() + b"\0", []

    def _dma_map(self, payload: memoryview, fds: list[int]) -> Reply:
        """Note the region. What would open guest memory was closed when it arrived, before this was looked at."""
        self.guard.descriptors_closed += self._refused
        request = _parse(DmaMap, payload)
        if request.argsz < DmaMap.size:
            raise OSError(errno.EINVAL, "DMA_MAP with a short argsz")
        self.guard.map(request.flags, request.address, request.size_bytes)
        if not (self._refused or fds):
            self.endpoint.dma_mapped(request.address, request.size_bytes)
        return _NOTHING

    def _dma_unmap(self, payload: memoryview, _: list[int]) -> Reply:
        request = _parse(DmaUnmap, payload)
        before = self.guard.regions if request.flags & UnmapFlag.ALL else {request.address: request.size_bytes}
        self.guard.unmap(request.flags, request.address, request.size_bytes)
        self.endpoint.dma_unmapped(before)
        return bytes(request), []

    def _device_info(self, payload: memoryview, _: list[int]) -> Reply:
        _parse_sized(DeviceInfo, payload)
        flags = DeviceFlag.RESET | DeviceFlag.PCI
        return DeviceInfo.codec.pack(DeviceInfo.size, flags, len(Region), len(Irq)), []

    def _region_info(self, payload: memoryview, _: list[int]) -> Reply:
        request = _parse_sized(RegionInfo, payload)
        if request.index >= len(Region):
            raise OSError(errno.EINVAL, f"region {request.index}")
        region = self.endpoint.regions.get(request.index)
        size, flags, fds = 0, RegionFlag(0), []
        if region:
            size = region.size
            flags = RegionFlag.READ | (RegionFlag.WRITE if region.writable else 0)
            if region.mappable and self._peer_fds:
                flags |= RegionFlag.MMAP
                fds = [self.endpoint.window.fd]
        return RegionInfo.codec.pack(RegionInfo.size, flags, request.index, 0, size, 0), fds

    def _region_io_fds(self, payload: memoryview, _: list[int]) -> Reply:
        """Return which parts of a region may be written to by eventfd, as many as one message has descriptors for.

        The others are written to by REGION_WRITE, as all of them may be.
        """
        request = _parse_sized(RegionIoFds, payload)
        if request.index >= len(Region) or request.flags:
            raise OSError(errno.EINVAL, f"eventfds of region {request.index} with flags {request.flags:#x}")
        fds: list[int] = []
        parts = []
        for offset, size, eventfd in self.endpoint.notifiers(request.index):
            if eventfd not in fds and len(fds) < self._peer_fds:
                fds.append(eventfd)
            if eventfd in fds:
                place = fds.index(eventfd)
                parts.append(SubRegionIoFd.codec.pack(offset, size, place, IoFdType.IOEVENTFD, 0, 0, 0))
        argsz = RegionIoFds.size + len(parts) * SubRegionIoFd.size
        head = RegionIoFds.codec.pack(argsz, 0, request.index, len(parts))
        return (head, []) if request.argsz < argsz else (head + b"".join(parts), fds)

    def _irq_info(self, payload: memoryview, _: list[int]) -> Reply:
        request = _parse_sized(IrqInfo, payload)
        count = self._irq_count(request.index)
        flags = IrqFlag(0)
        if count:
            flags = IrqFlag.EVENTFD
            if request.index == Irq.INTX:
                flags |= IrqFlag.MASKABLE | IrqFlag.AUTOMASKED
            elif request.index == Irq.MSIX:
                flags |= IrqFlag.MASKABLE
        return IrqInfo.codec.pack(IrqInfo.size, flags, request.index, count), []

    def _irq_count(self, index: int) -> int:
        if index >= len(Irq):
            raise OSError(errno.EINVAL, f"interrupt index {index}")
        return {Irq.INTX: 1, Irq.MSIX: self.endpoint.interrupts.vectors, Irq.ERR: 1}.get(Irq(index), 0)

    def _set_irqs(self, payload: memoryview, fds: list[int]) -> Reply:
        """Wire, mask or trigger the interrupts ``start`` to ``start + count`` of an index."""
        with self.endpoint.paused_queues():
            return self._set_paused_irqs(payload, fds)

    def _set_paused_irqs(self, payload: memoryview, fds: list[int]) -> Reply:
        request = _parse(IrqSet, payload)
        index, start, count = request.index, request.start, request.count
        have = self._irq_count(index)
        if start + count > have:
            raise OSError(errno.EINVAL, f"interrupts {start} to {start + count} of index {index}, which has {have}")
        kind = request.flags & (IrqSetFlag.DATA_NONE | IrqSetFlag.DATA_BOOL | IrqSetFlag.DATA_EVENTFD)
        action = request.flags & ~int(kind)  # of a flag, ~ knows no bits but its own
        if kind == IrqSetFlag.DATA_NONE and not count:
            start, chosen = 0, [True] * have  # "disables all interrupts of the index", if it says trigger
            if action == IrqSetFlag.ACTION_TRIGGER:
                self._wire(index, 0, [-1] * have)
                return _NOTHING
        elif kind == IrqSetFlag.DATA_NONE:
            chosen = [True] * count
        elif kind == IrqSetFlag.DATA_BOOL:
            data = bytes(payload[IrqSet.size :])
            if len(data) < count:
                raise OSError(errno.EINVAL, f"SET_IRQS has {len(data)} booleans for {count} interrupts")
            chosen = [bool(value) for value in data[:count]]
        elif kind == IrqSetFlag.DATA_EVENTFD and action == IrqSetFlag.ACTION_TRIGGER:
            if fds and len(fds) != count:
                raise OSError(errno.EINVAL, f"SET_IRQS has {len(fds)} eventfds for {count} interrupts")
            if self._refused:
                raise OSError(errno.EINVAL, f"{self._refused} of the descriptors to signal are not eventfds")
            for fd in fds:
                os.set_blocking(fd, False)
            taken, fds[:] = fds[:], []
            self._wire(index, start, taken or [-1] * count)
            return _NOTHING
        else:
            raise OSError(errno.EINVAL, f"SET_IRQS has invalid flags {request.flags:#x}")
        self._act(index, action, [number for number, yes in enumerate(chosen, start) if yes])
        return _NOTHING

    def _wire(self, index: int, start: int, eventfds: list[int]) -> None:
        interrupts = self.endpoint.interrupts
        if index == Irq.MSIX:
            interrupts.assign_vectors(start, eventfds)
        elif eventfds:
            (interrupts.assign_intx if index == Irq.INTX else interrupts.assign_err)(eventfds[0])

    def _act(self, index: int, action: int, numbers: list[int]) -> None:
        interrupts = self.endpoint.interrupts
        if action not in (IrqSetFlag.ACTION_MASK, IrqSetFlag.ACTION_UNMASK, IrqSetFlag.ACTION_TRIGGER):
            raise OSError(errno.EINVAL, f"SET_IRQS has invalid action {action:#x}")
        if index == Irq.ERR:
            raise OSError(errno.EINVAL, "the error interrupt cannot be masked or triggered")
        for number in numbers:
            if action != IrqSetFlag.ACTION_TRIGGER:
                masked = action == IrqSetFlag.ACTION_MASK
                if index == Irq.INTX:
                    interrupts.mask_intx(masked)
                else:
                    interrupts.mask_vectors(number, 1, masked)
            elif index == Irq.INTX:
                interrupts.trigger_intx()
            else:
                interrupts.raise_vector(number)

    def _reset(self, _: memoryview, __: list[int]) -> Reply:
        self.endpoint.reset()
        return _NOTHING

    def _region_read(self, payload: memoryview, _: list[int]) -> Reply:
        if len(payload) != _ACCESS_BYTES:
            raise OSError(errno.EINVAL, f"REGION_READ payload is {len(payload)} bytes, expected {_ACCESS_BYTES}")
        offset, region, count = _ACCESS.unpack(payload)
        if count > self._peer_transfer:
            raise OSError(errno.EINVAL, f"REGION_READ of {count} bytes, expected at most {self._peer_transfer}")
        return payload.tobytes() + self.endpoint.read(region, offset, count), []

    def _region_write(self, payload: memoryview, _: list[int]) -> Reply:
        if len(payload) < _ACCESS_BYTES:
            raise OSError(
                errno.EINVAL, f"REGION_WRITE payload is {len(payload)} bytes, expected at least {_ACCESS_BYTES}"
            )
        offset, region, count = _ACCESS.unpack_from(payload)
        if count != len(payload) - _ACCESS_BYTES:
            raise OSError(errno.EINVAL, f"REGION_WRITE of {count} bytes carries {len(payload) - _ACCESS_BYTES}")
        self.endpoint.write(region, offset, payload[_ACCESS_BYTES:].tobytes())
        return payload[:_ACCESS_BYTES].tobytes(), []

    def _region_write_multi(self, payload: memoryview, _: list[int]) -> Reply:
        count = _parse(WriteMulti, payload).count
        if count > _MAX_MULTI or len(payload) != WriteMulti.size + count * MultiWrite.size:
            raise OSError(errno.EINVAL, f"REGION_WRITE_MULTI of {count} writes in {len(payload)} bytes")
        writes = []
        for offset, region, width, data in MultiWrite.codec.iter_unpack(payload[WriteMulti.size :]):
            if width > MultiWrite.data.size:
                raise OSError(
                    errno.EINVAL,
                    f"REGION_WRITE_MULTI has a write of {width} bytes, expected at most {MultiWrite.data.size}",
                )
            writes.append((region, offset, data.to_bytes(MultiWrite.data.size, "little")[:width]))
        self.endpoint.write_all(writes)
        return WriteMulti.codec.pack(count), []


def _parse(layout: type[L], payload: memoryview) -> L:
    """View a payload as a structure. Raises OSError EINVAL if it is too short."""
    if len(payload) < layout.size:
        raise OSError(errno.EINVAL, f"{layout.__name__} payload is {len(payload)} bytes, expected {layout.size}")
    return layout(payload)


def _parse_sized(layout: type[Any], payload: memoryview) -> Any:
    """View a payload as a structure whose argsz must have room for the reply."""
    request = _parse(layout, payload)
    if request.argsz < layout.size:
        raise OSError(errno.EINVAL, f"{layout.__name__} has argsz {request.argsz}, expected at least {layout.size}")
    return request


def _capabilities(raw: bytes) -> dict[str, Any]:
    """Parse the capabilities of a VERSION message: none, or JSON with a NUL after it.

    Those that we know have the type that they should have; of the others nothing is looked at. Raises OSError EINVAL.
    """
    if not raw:
        return {}
    try:
        if raw[-1] != 0:
            raise ValueError("no terminating NUL")
        if len(raw) > _MAX_CAPABILITIES:
            raise ValueError(f"{len(raw)} bytes, at most {_MAX_CAPABILITIES} are read")
        top = json.loads(raw[:-1].decode() or "{}", parse_constant=_refuse_constant, parse_float=_finite)
        if not isinstance(top, dict):
            raise ValueError(f"a {type(top).__name__} where an object is expected")
        found = top.get("capabilities", {})
        if not isinstance(found, dict):
            raise ValueError(f'"capabilities" is a {type(found).__name__}, expected an object')
        for name in ("max_msg_fds", "max_data_xfer_size"):
            if name in found and not (type(found[name]) is int and found[name] >= 0):
                raise ValueError(f"{name} is not a number of 0 or more")
        if type(found.get("write_multiple", True)) is not bool:
            raise ValueError("write_multiple is neither true nor false")
    except (ValueError, RecursionError) as error:
        raise OSError(errno.EINVAL, f"VERSION with bad capabilities: {error}") from None
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number out of range")
    return number
