"""Run a device model as a process of its own: the options, the ready line, the clean end.

For a device of one's own this is all there is to a program::

    if __name__ == "__main__":
        main(Dice)
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from nodma.device.base import Device
from nodma.errors import NodmaError, Unavailable, UsageError
from nodma.hosting.process import end_with_parent, qemu_device
from nodma.hosting.ratelimit import RateLimit
from nodma.loop import Loop
from nodma.pci_function import PciFunction, RemoteKeeper, SharedPoolConfig
from nodma.ring import COMPILED
from nodma.spec.profiles import PROFILES, SWIOTLB, Policy
from nodma.units import parse_size
from nodma.vfio_user.listener import adopt_listener, make_listener
from nodma.vfio_user.server import Server

log = logging.getLogger(__name__)

_FINISH_SECONDS: Final = 2.0
_POLL_NS: Final = 1_000_000
_BRIEF_POLL_NS: Final = 200_000  # what a notification costs: it goes from the guest to the VMM to the device, and back

F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """A size in bytes on the command line."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except NodmaError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How a device is served. Exactly one of ``socket_path`` and ``fd`` says where; ``pool`` is bytes."""

    socket_path: Path | None = None
    fd: int | None = None
    pool: int = 16 << 20
    profile: str = SWIOTLB.name
    policy: str = Policy.REQUIRED.value
    poll: bool = False
    verbose: int = 0
    as_json: bool = False
    slot_fd: int | None = None
    pool_owner: str | None = None
    pool_users: int = 1

    @property
    def share_of_pool(self) -> int:
        """Bytes of the pool that this device may count on: all, or where it is shared an equal part."""
        return self.pool // self.pool_users


_OPTIONS = (
    click.option("-s", "--socket-path", type=click.Path(path_type=Path), metavar="PATH", help="Where to listen."),
    click.option("--fd", type=int, metavar="N", help="Listen on this descriptor, a listening UNIX socket."),
    click.option(
        "--pool",
        type=Size(),
        default="16M",
        show_default=True,
        help="The window's size: a power of two from 64K to 4G.",
    ),
    click.option(
        "--profile", type=click.Choice(list(PROFILES)), default=SWIOTLB.name, show_default=True, help="Wire profile."
    ),
    click.option(
        "--policy",
        type=click.Choice([policy.value for policy in Policy]),
        default=Policy.REQUIRED.value,
        show_default=True,
        help="Refuse a driver that does not accept the profile's feature, or accept it and catch what lies outside.",
    ),
    click.option(
        "--poll", is_flag=True, help="Look for requests all the time while some come, on a core for each queue in use."
    ),
    click.option("-v", "--verbose", count=True, help="Log what happens; twice: every refused message too."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line."),
    # What `nodma serve --slot` tells the processes of its functions.
    click.option("--slot-fd", type=int, hidden=True, help="Where the keeper of the slot's shared pool answers."),
    click.option("--pool-owner", hidden=True, help='Whose BAR the shared pool is in: "self", or a function\'s number.'),
    click.option("--pool-users", type=click.IntRange(1), default=1, hidden=True, help="Functions that share it."),
)


def host_options(command: F) -> F:
    """Give a click command the options that every device process has, as one argument ``options``."""

    def gathered(**arguments: Any) -> Any:
        mine = {option.name: arguments.pop(option.name) for option in fields(HostOptions)}
        return command(options=HostOptions(**mine), **arguments)

    gathered.__doc__ = command.__doc__
    gathered.__name__ = command.__name__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered  # type: ignore[return-value]


def host(make_device: Callable[[HostOptions], Device], options: HostOptions) -> None:
    """Serve a device until SIGTERM or SIGINT; print a ready line when the socket accepts.

    At the end the requests that were taken are done, the device is drained, the socket file is gone.
    Raises NodmaError if it cannot be served.
    """
    if (options.socket_path is None) == (options.fd is None):
        raise click.UsageError("give either --socket-path PATH or --fd N: where to listen.")
    if options.slot_fd is not None:
        end_with_parent()
    start_log(options.verbose)
    device = make_device(options)
    try:
        function = PciFunction(
            device,
            pool=options.pool,
            profile=PROFILES[options.profile],
            policy=Policy(options.policy),
            share=_share(options),
            threads=True,
            poll_ns=poll_ns(options.poll),
        )
    except BaseException:
        device.close()
        raise
    try:
        listener = make_listener(options.socket_path) if options.socket_path else adopt_listener(options.fd or 0)
        loop = Loop()
        server = Server(function, listener.socket, loop)
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: loop.stop())
            _announce(options, function.describe(), listener.path)
            loop.run()
            server.finish(_FINISH_SECONDS)
        finally:
            server.close()
            loop.close()
            listener.remove()
    finally:
        function.close()
    _say_end(options, report(function, server))


def poll_ns(poll: bool) -> int:
    """Give how long, in ns, a queue is polled after its last request at most. Where it does not pay off it is less."""
    return _POLL_NS if poll else _BRIEF_POLL_NS


def start_log(verbose: int) -> None:
    """Log to stderr: warnings, with 1 what happens, with 2 every refused message; never more than a reader can read."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RateLimit())
    logging.basicConfig(level=level, handlers=[handler], format="nodma: %(levelname)s: %(message)s")


def _share(options: HostOptions) -> SharedPoolConfig | None:
    """Say whose window it is, if it is shared."""
    if options.slot_fd is None or options.pool_owner is None:
        return None
    keeper = RemoteKeeper(socket.socket(fileno=options.slot_fd))
    return SharedPoolConfig(keeper, None if options.pool_owner == "self" else int(options.pool_owner))


def main(device_class: Callable[[], Device]) -> None:
    """Be the program of a device: take the options from the command line, and serve it.

    Exits with 0 when it was ended, 1 if it could not be served, 2 if the command line is wrong.
    """

    @click.command(help=device_class.__doc__)
    @host_options
    def serve(options: HostOptions) -> None:
        host(lambda _: device_class(), options)

    run(serve)


def run(command: click.Command, prog_name: str | None = None) -> None:
    """Run a command line; nodma's errors become one line and an exit code: 2 for a wrong command line, else 1."""
    try:
        status = command.main(standalone_mode=False, prog_name=prog_name)
    except NodmaError as error:
        click.echo(f"nodma: error: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) and not isinstance(error, Unavailable) else 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    if isinstance(status, int):  # of a command that ended by Context.exit
        sys.exit(status)


def _announce(options: HostOptions, device: str, path: str) -> None:
    """Print the ready line."""
    argument = qemu_device(path)
    if options.as_json:
        record = {
            "event": "ready",
            "device": device,
            "socket": path,
            "pool": options.pool,
            "ring": "compiled" if COMPILED else "interpreted",
            "qemu": ["-device", argument],
        }
        click.echo(json.dumps(record))
    else:
        click.echo(f"ready: {device} on {path}, attach: -device {shlex.quote(argument)}")
    sys.stdout.flush()


def _say_end(options: HostOptions, record: dict[str, Any]) -> None:
    """Say, at the end, what happened in the whole life of the process."""
    if options.as_json:
        click.echo(json.dumps({"event": "end"} | record))
    else:
        log.info("served: %s", record)


def report(function: PciFunction, server: Server) -> dict[str, Any]:
    """Count what a device process did."""
    counters = function.core.counters
    return {
        "clients": server.clients,
        "messages": server.messages,
        "requests": function.core.requests,
        "notifications": counters.notifications,
        "interrupts": function.core.interrupted,
        "needs_reset": counters.needs_reset,
        "features_refused": counters.refused,
        "addresses_outside_window": counters.outside,
        "last_reason": function.core.reason,
        "dma_maps": server.guard.maps,
        "dma_descriptors_closed": server.guard.descriptors_closed,
        "device": function.statistics(),
    }
