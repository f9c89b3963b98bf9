"""The functions that one process serves, one or eight, by one loop: how they are assembled, served, and ended.

There is no other way to run a function. :class:`Host` makes devices, puts a PCI function around each and a server in
front of it; all servers share the loop of the main thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Self

from nodma.device.base import Device
from nodma.errors import NodmaError, Unavailable, UsageError
from nodma.hosting import output
from nodma.hosting.limits import Needs
from nodma.hosting.lockdown import lock_down
from nodma.hosting.signals import Signals
from nodma.hosting.systemd import Notifier
from nodma.loop import Loop
from nodma.pci_function import PciFunction, SharedPoolConfig
from nodma.spec.profiles import SWIOTLB, Policy, Profile
from nodma.vfio_user.listener import Listener
from nodma.vfio_user.server import Server

log = logging.getLogger(__name__)

Report = dict[str, Any]

_FINISH_SECONDS: Final = 2.0
"""How long requests that are there when the process is asked to end may take, for all functions together."""
_POLL_NS: Final = 1_000_000
_BRIEF_POLL_NS: Final = 200_000  # what a notification costs: it goes from the guest to the VMM to the device, and back


@dataclass(frozen=True, slots=True)
class FunctionSettings:
    """What a function is besides its device. ``pool`` is the bytes of its window, ``shared`` whom it shares it with."""

    pool: int
    profile: Profile = SWIOTLB
    policy: Policy = Policy.REQUIRED
    poll: bool = False
    """Whether queues are polled for long, instead of about as long as a notification takes."""
    shared: SharedPoolConfig | None = None


@dataclass(slots=True)
class HostedFunction:
    """A function of this process. ``doing`` says what it is at, for whoever has to end it before that is done."""

    name: str
    device: Device
    function: PciFunction
    make_listener: Callable[[], Listener]
    listener: Listener | None = None
    server: Server | None = None
    doing: str = ""
    problems: list[str] = field(default_factory=list)
    """What went wrong at its end."""

    @property
    def path(self) -> str:
        """Where it listens; "" if it does not yet."""
        return self.listener.path if self.listener else ""

    def listen(self, loop: Loop) -> None:
        """Begin to accept clients. Raises UsageError if it cannot listen there."""
        self.listener = self.make_listener()
        self.server = Server(self.function, self.listener.socket, loop)

    def reload(self) -> None:
        """Have the device look at its back end again, which may have grown."""
        self.function.reload()

    def finish(self, seconds: float) -> None:
        """Handle the requests that have arrived, and drop the client."""
        self.doing = "finishing requests"
        if self.server:
            self.server.finish(seconds)

    def close(self) -> None:
        """Release everything; what was acknowledged is durable if this does not raise."""
        try:
            if self.server:
                self.server.close()
            if self.listener:
                self.listener.remove()
        finally:
            self.doing = f"making what was written durable ({self.function.describe()})"
            before = self.function.core.reason
            self.function.close()
            if self.function.core.reason != before:
                self.problems.append(f"{self.name}: {self.function.core.reason}")
            if self.function.unfinished:
                self.problems.append(f"{self.name}: {self.function.unfinished}")
                log.error("%s", self.problems[-1])
        self.doing = ""

    def try_to(self, work: Callable[[], None]) -> None:
        """Do a part of the end; if it fails, note why: the other parts, and other functions, end all the same."""
        try:
            work()
        except Exception as error:
            if not isinstance(error, (NodmaError, OSError)):
                log.debug("a traceback", exc_info=True)
            self.problems.append(f"{self.name}: {self.doing or 'closing'}: {_reason(error)}")
            log.error("%s", self.problems[-1])

    def report(self) -> Report:
        """Count what the function did."""
        counters = self.function.core.counters
        server = self.server
        assert server
        return {
            "clients": server.clients,
            "messages": server.messages,
            "requests": self.function.core.requests,
            "notifications": counters.notifications,
            "interrupts": self.function.core.interrupted,
            "needs_reset": counters.needs_reset,
            "features_refused": counters.refused,
            "addresses_outside_window": counters.outside,
            "last_reason": self.function.core.reason,
            "dma_maps": server.guard.maps,
            "dma_descriptors_closed": server.guard.descriptors_closed,
            "device": self.function.statistics(),
            "problems": self.problems,
        }


class Host:
    """The functions of this process. Use it as a context: what was made is closed at its end, whatever happens."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.functions: list[HostedFunction] = []
        self._needs = Needs()
        self._stack = ExitStack()
        self._stack.callback(self.loop.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(
        self,
        name: str,
        make_device: Callable[[], Device],
        make_listener: Callable[[], Listener],
        settings: FunctionSettings,
    ) -> HostedFunction:
        """Make a device and a function around it; it listens from :meth:`listen` on.

        Raises NodmaError if it cannot be served; nothing of it is left then.
        """
        device = _make(make_device)
        with ExitStack() as stack:
            stack.callback(device.close)
            _check(device)
            self._needs.add(len(device.queues))
            try:
                function = PciFunction(
                    device,
                    pool=settings.pool,
                    profile=settings.profile,
                    policy=settings.policy,
                    share=settings.shared,
                    threads=True,
                    poll_ns=_POLL_NS if settings.poll else _BRIEF_POLL_NS,
                )
            except OSError as error:
                raise Unavailable(f"{name} cannot be served: {_reason(error)}") from error
            stack.pop_all()
        hosted = HostedFunction(name, device, function, make_listener)
        self.functions.append(hosted)
        self._stack.callback(self._close, hosted)
        return hosted

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when all functions that are added after this are closed."""
        self._stack.callback(callback)

    def listen(self) -> None:
        """Have all functions listen. Raises UsageError if one cannot."""
        for hosted in self.functions:
            hosted.listen(self.loop)

    def run(self) -> list[Report]:
        """Serve until :meth:`stop`, end all functions, and return what each reports.

        Reports have ``problems`` if something could not be done; they are in the log then.
        """
        try:
            self.loop.run()
        except NodmaError as error:
            log.error("%s", error)
            self.functions[0].problems.append(str(error))
        end = time.monotonic() + _FINISH_SECONDS
        for hosted in self.functions:
            hosted.try_to(lambda each=hosted: each.finish(max(0.0, end - time.monotonic())))  # type: ignore[misc]
        self._stack.close()
        return [hosted.report() for hosted in self.functions]

    def stop(self) -> None:
        """Have :meth:`run` end. For any thread."""
        self.loop.stop()

    def reload(self) -> None:
        """Have each device look at its back end again, soon. For any thread."""
        self.loop.call_soon_threadsafe(self._reload)

    def give_up(self, reason: str) -> NoReturn:
        """End the process as it is, and say what was not done. For any thread."""
        left = "; ".join(f"{hosted.name}: {hosted.doing}" for hosted in self.functions if hosted.doing)
        for hosted in self.functions:
            if hosted.listener:
                hosted.listener.remove()
        output.say_error(f"ended by force, because {reason}; not done: {left or 'starting, or waiting for a client'}")
        output.flush()
        os._exit(1)

    def _reload(self) -> None:
        for hosted in self.functions:
            try:
                hosted.reload()
            except Exception as error:
                log.error("%s: reload failed: %s", hosted.name, _reason(error))

    def _close(self, hosted: HostedFunction) -> None:
        hosted.try_to(hosted.close)


def serve(
    host: Host, assemble: Callable[[Host], None], announce: Callable[[Host], None], *, auditable: bool
) -> list[Report]:
    """Assemble the functions of ``host``, announce them, and serve them until a signal ends that; return their reports.

    Unless ``auditable``, no process of this user may look into this one.

    Raises NodmaError if they cannot be served.
    """
    notifier = Notifier()

    def stop() -> None:
        notifier.stopping()
        host.stop()

    with Signals(stop=stop, reload=host.reload, give_up=host.give_up), host:
        assemble(host)
        lock_down(auditable=auditable)
        host.listen()
        announce(host)
        notifier.ready("serving " + ", ".join(hosted.function.describe() for hosted in host.functions))
        return host.run()


def _make(make_device: Callable[[], Device]) -> Device:
    """Make a device; whatever its author's code raises becomes one line."""
    try:
        device = make_device()
    except NodmaError:
        raise
    except Exception as error:
        log.info("a traceback", exc_info=True)
        raise Unavailable(f"cannot create the device: {_reason(error)}") from error
    if not isinstance(device, Device):
        raise UsageError(f"expected a Device, got {device!r}: main() takes a class or a function that makes one")
    return device


def _check(device: Device) -> None:
    """Raise UsageError if no function can be made of the device."""
    try:
        device.check()
    except NodmaError:
        raise
    except Exception as error:
        log.info("a traceback", exc_info=True)
        raise UsageError(f"the device cannot be served: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return what an exception says, as one line."""
    text = " ".join(str(error).split())
    if isinstance(error, (NodmaError, OSError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
