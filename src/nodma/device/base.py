"""What a device model is: the class to subclass, and the queues it declares.

A whole device::

    class Dice(Device):
        device_type = 0x2A
        queues = (Queue("rolls", size=64),)

        class Config(Layout):
            sides = le32(6)

        def rolls(self, request: Request) -> None:
            request.write(bytes([secrets.randbelow(self.config.sides) + 1]))

A handler gets one request at a time and is done with it when it returns; that of a queue with ``batch`` gets a list of
them. What it raises sets DEVICE_NEEDS_RESET and stops the queues until the driver resets the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, runtime_checkable

from nodma.device.handler_engine import HandlerEngine
from nodma.errors import BadRing, UsageError
from nodma.ring import DeviceRing, Request
from nodma.spec.layout import Layout
from nodma.spec.virtio import DEVICE_TYPE_FEATURES, MAX_QUEUE_SIZE
from nodma.spec.virtio_pci import DEVICE_TYPES

MAX_CONFIG: Final = 4096
"""Bytes that a device's configuration may have: a function has a page of its register BAR for it."""


@runtime_checkable
class Engine(Protocol):
    """What takes a queue's requests off the ring, handles them, and gives them back.

    A device whose :meth:`Device.make_engine` returns one of its own has it served by the main thread.
    :class:`nodma.ring.QueueEngine` is one that a thread of its own serves; it is subclassed in compiled modules only.
    """

    wanted: bool
    """The driver wants an interrupt; whoever gives it sets this to False."""

    @property
    def requests(self) -> int:
        """Requests taken."""

    @property
    def interrupts(self) -> int:
        """Interrupts that the engine signalled itself."""

    def serve(self, turns: int) -> int:
        """Handle up to ``turns`` batches; return IDLE, BUSY or FAULT."""

    def arm(self) -> bool:
        """Ask for a notification of the next request; return whether one came before that took effect."""

    def disarm(self) -> None:
        """Ask for no notifications."""

    def rebase(self, base: int) -> None:
        """Follow the window to another bus address."""

    def explain(self) -> BadRing:
        """Return what was wrong, after FAULT."""

    def close(self) -> None:
        """Close what the engine opened."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A virtqueue of a device: at most ``size`` entries, its requests handled by a method of the device.

    The method has the queue's name, or that of ``handler``: several queues may share one. With ``batch`` it gets a list
    of requests, up to 16 that are there, returned together when the handler returns: for devices that gain by
    doing several at once.
    """

    name: str
    size: int = 256
    handler: str = ""
    batch: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_QUEUE_SIZE or self.size & (self.size - 1):
            raise UsageError(
                f"queue {self.name!r} has {self.size} entries: it must be a power of two up to {MAX_QUEUE_SIZE}"
            )


class Device:
    """A virtio device of whatever type. Subclasses set the class attributes and write the handlers."""

    device_type: ClassVar[int]
    """The virtio device id (virtio 1.4, chapter 5)."""

    pci_class: ClassVar[tuple[int, int]] = (0xFF, 0x00)
    """PCI base class and subclass; the default is "unassigned"."""

    queues: Sequence[Queue] = ()
    """The queues, in the order of their indexes."""

    features: int = 0
    """The feature bits of the device type that are offered, as a mask."""

    Config: ClassVar[type[Layout]] = Layout
    """The layout of the device-specific configuration; a subclass declares its own, or has none."""

    config: Layout
    """What the driver reads as device configuration, made from the defaults of ``Config``."""

    unfinished: str = ""
    """What :meth:`close` could not do in time, or had to give up; "" if all is done."""

    def __init__(self) -> None:
        self.config = self.Config.new()
        self._announce: Callable[[], None] | None = None

    def describe(self) -> str:
        """Return what this is, for the ready line."""
        return type(self).__name__

    def make_engine(self, queue: Queue, ring: DeviceRing) -> Engine:
        """Make the engine of ``queue``, which the driver has just enabled."""
        handler = self._handler(queue)
        if queue.batch:
            return HandlerEngine(ring, handler)

        def each(requests: list[Request]) -> None:
            for request in requests:
                handler(request)

        return HandlerEngine(ring, each)

    def check(self) -> None:
        """Raise UsageError, with a message for the author, if no function can be made of this device."""
        name = type(self).__name__
        if "_announce" not in vars(self):
            raise UsageError(f"{name}.__init__() does not call super().__init__()")
        kind = getattr(self, "device_type", None)
        if not isinstance(kind, int) or kind not in DEVICE_TYPES:
            raise UsageError(
                f"{name}.device_type is {kind!r}: it must be a virtio device id from {DEVICE_TYPES.start} to"
                f" {DEVICE_TYPES.stop - 1}"
            )
        if any(byte not in range(256) for byte in self.pci_class) or len(self.pci_class) != 2:
            raise UsageError(f"{name}.pci_class is {self.pci_class!r}: it must be two bytes, base class and subclass")
        if not isinstance(self.features, int) or self.features & ~DEVICE_TYPE_FEATURES:
            raise UsageError(
                f"{name}.features is {self.features!r}: only bits 0 to 23 and 50 to 63 are the device type's; the"
                " others are negotiated by the transport (virtio 1.4, 2.2)"
            )
        if not isinstance(self.config, Layout) or self.config.size > MAX_CONFIG:
            raise UsageError(f"{name}.config must be a Layout of at most {MAX_CONFIG} bytes, got {self.config!r}")
        if not self.queues:
            raise UsageError(f"{name} has no queues: a driver could ask nothing of it; set queues to one Queue or more")
        for queue in self.queues:
            if not isinstance(queue, Queue):
                raise UsageError(f"{name}.queues has {queue!r}, which is not a Queue")
            if type(self).make_engine is Device.make_engine:
                self._handler(queue)

    def _handler(self, queue: Queue) -> Callable[..., None]:
        """Return the method that handles the requests of ``queue``."""
        handler = getattr(self, queue.handler or queue.name, None)
        if not callable(handler):
            raise UsageError(
                f"{type(self).__name__} has no method {queue.handler or queue.name!r} to handle queue {queue.name!r}"
            )
        return handler  # type: ignore[no-any-return]

    def start(self, features: int) -> None:
        """Begin to work: the driver is ready and has accepted ``features``."""

    def reset(self) -> None:
        """Forget what the driver set up; no request is outstanding."""

    def reload(self) -> None:
        """Look again at what the device was made from, at its operator's wish (SIGUSR1). Raises UsageError."""

    def drain(self) -> None:
        """Make what was acknowledged durable: the process is about to end, or the driver is gone."""

    def close(self) -> None:
        """Release what the device holds."""

    def config_written(self, offset: int, data: bytes) -> None:
        """Take what the driver wrote to the device configuration. Nothing is writable unless overridden."""

    def statistics(self) -> dict[str, int]:
        """Count what the device did, for people and for ``--json``."""
        return {}

    def config_changed(self) -> None:
        """Tell the driver that ``config`` has changed."""
        if self._announce:
            self._announce()

    def on_config_change(self, announce: Callable[[], None] | None) -> None:
        """Set whom :meth:`config_changed` tells: the function that the device sits in."""
        self._announce = announce
