"""The options of every device process, and the types of their values."""

from __future__ import annotations

import grp
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import click

from nodma.errors import NodmaError, Unavailable, UsageError
from nodma.spec.profiles import MAX_POOL, MIN_POOL, PROFILES, SWIOTLB, Policy, Profile
from nodma.units import parse_size, show_size

_MAX_MODE: Final = 0o777


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


class PoolSize(Size):
    """The size of a window: a power of two, as a BAR is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read and check it."""
        size = super().convert(value, param, ctx)
        try:
            return check_pool(size)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class FilePath(click.ParamType[Path]):
    """A path that can be shown, and written into JSON: it must be UTF-8."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Check it."""
        try:
            return check_path(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class SocketMode(click.ParamType[int]):
    """Permissions in octal."""

    name = "mode"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read them."""
        if isinstance(value, int):
            return value
        try:
            mode = int(value, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= _MAX_MODE:
            self.fail(f"invalid mode {value!r}: give permissions in octal, such as 660", param, ctx)
        return mode


def check_pool(size: int) -> int:
    """Return ``size``. Raises UsageError if no window can have it."""
    if size & (size - 1) or not MIN_POOL <= size <= MAX_POOL:
        raise UsageError(
            f"the pool must be a power of two from {show_size(MIN_POOL)} to {show_size(MAX_POOL)}, as a PCI BAR is,"
            f" got {show_size(size)}"
        )
    return size


def check_path(text: str) -> Path:
    """Return the path. Raises UsageError if it is empty, has NUL characters, or is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = text.encode(errors="backslashreplace").decode()
        raise UsageError(
            f"the path {shown} is not UTF-8: QEMU's arguments are JSON, which cannot name it; rename it, or serve it"
            " through a symbolic link"
        ) from None
    if not text or "\0" in text:
        raise UsageError(f"invalid path {text!r}")
    return Path(text)


def find_group(name: str) -> int:
    """Return the number of a group, given by name or number. Raises Unavailable if there is no such group."""
    try:
        return int(name) if name.isascii() and name.isdigit() else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise Unavailable(f"no group {name!r} on this system: give --socket-group an existing one") from None


def check_policy(profile: Profile, policy: Policy) -> None:
    """Raise UsageError if the policy is not available with the profile."""
    if policy not in profile.policies:
        raise UsageError(
            f"policy {policy} is not available with profile {profile.name}: addresses from a driver that does not"
            f" know {profile.feature.name} could pass for offsets ({profile.clauses.refuse})"
        )


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How a device is served; ``pool`` is in bytes.

    At most one of ``socket_path`` and ``fd`` says where; without, systemd must have handed over a socket.
    """

    socket_path: Path | None = None
    fd: int | None = None
    socket_mode: int | None = None
    socket_group: str | None = None
    pool: int = 16 << 20
    profile: str = SWIOTLB.name
    policy: str = Policy.REQUIRED.value
    poll: bool = False
    verbose: int = 0
    as_json: bool = False
    auditable: bool = False
    slot_fd: int | None = None
    pool_owner: str | None = None
    pool_users: int = 1

    @property
    def share_of_pool(self) -> int:
        """Bytes of the pool that this device may count on: all, or an equal part of a shared one."""
        return self.pool // self.pool_users


Decorator = Callable[[Any], Any]

WINDOW_OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option(
        "--pool",
        type=PoolSize(),
        default="16M",
        show_default=True,
        help="Size of the window: a power of two from 64K to 4G.",
    ),
    click.option(
        "--profile", type=click.Choice(list(PROFILES)), default=SWIOTLB.name, show_default=True, help="Wire profile."
    ),
    click.option(
        "--policy",
        type=click.Choice([policy.value for policy in Policy]),
        default=Policy.REQUIRED.value,
        show_default=True,
        help="Refuse a driver that does not accept the profile's feature, or accept it and catch addresses outside"
        " the window.",
    ),
    click.option("--poll", is_flag=True, help="Poll while requests keep coming; uses one core for each busy queue."),
)
"""What one function and a whole slot have in common."""

SOCKET_OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option(
        "--socket-mode", type=SocketMode(), metavar="MODE", help="Permissions of the socket, in octal.  [default: 600]"
    ),
    click.option(
        "--socket-group",
        metavar="GROUP",
        help="Group of the socket; unless --socket-mode says otherwise, the group may connect.",
    ),
)

REPORT_OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option(
        "--auditable",
        is_flag=True,
        help="Let other processes of this user inspect the device process, as `nodma demo` does; root always can.",
    ),
    click.option("-v", "--verbose", count=True, help="Log events; twice: every refused message too."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line."),
)

_OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option("-s", "--socket-path", type=FilePath(), metavar="PATH", help="Listen on a new socket at PATH."),
    click.option(
        "--fd", type=click.IntRange(0), metavar="N", help="Accept clients on this descriptor, a listening UNIX socket."
    ),
    *SOCKET_OPTIONS,
    *WINDOW_OPTIONS,
    *REPORT_OPTIONS,
    # What the supervisor of a slot passes to the processes of its functions; see docs/shared-pools.md.
    click.option(
        "--slot-fd",
        type=click.IntRange(0),
        hidden=True,
        help="Descriptor of the socket to the keeper of the shared pool.",
    ),
    click.option("--pool-owner", hidden=True, help='Whose BAR the shared pool is in: "self", or a function\'s number.'),
    click.option(
        "--pool-users", type=click.IntRange(1), default=1, hidden=True, help="How many functions share the pool."
    ),
)


def add_options(command: Any, options: Sequence[Decorator]) -> Any:
    """Decorate a command, or the function that it will be made of, with ``options``; --help keeps their order."""
    for option in options if isinstance(command, click.Command) else reversed(options):
        command = option(command)
    return command


def host_options(command: Callable[..., Any]) -> Any:
    """Decorate a click command with the options of every device process; it gets them as one argument ``options``."""

    def gathered(**arguments: Any) -> Any:
        own = {option.name: arguments.pop(option.name) for option in fields(HostOptions)}
        return command(options=HostOptions(**own), **arguments)

    gathered.__doc__ = command.__doc__
    gathered.__name__ = command.__name__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return add_options(gathered, _OPTIONS)
