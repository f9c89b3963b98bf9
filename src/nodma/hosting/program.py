"""A device model as a program: its command line, its ready line, its end.

For a device of your own this is all there is to a program::

    if __name__ == "__main__":
        main(Dice)
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import click

from nodma.device.base import Device
from nodma.errors import NodmaError, Unavailable, UsageError
from nodma.hosting import output
from nodma.hosting.attach import end_with_parent, qemu_device
from nodma.hosting.host import FunctionSettings, Host, HostedFunction, Report, serve
from nodma.hosting.limits import raise_descriptor_limit
from nodma.hosting.listeners import Listeners
from nodma.hosting.options import Decorator, HostOptions, add_options, check_policy, host_options
from nodma.pci_function import RemoteKeeper, SharedPoolConfig
from nodma.ring import COMPILED
from nodma.spec.profiles import PROFILES, Policy

log = logging.getLogger(__name__)

FAILED: Final = 1
"""The exit code when what was asked for failed."""
MISUSED: Final = 2
"""The exit code for a wrong command line."""
INTERRUPTED: Final = 130
"""The exit code after SIGINT, where that is not the usual way to end."""


def main(make_device: Callable[..., Device], options: Sequence[Decorator] = ()) -> None:
    """Run a device as a program: take the options from the command line, and serve it.

    ``make_device`` is the device's class, or what else makes one. ``options`` are click's options and arguments
    (``click.option("--sides", default=6)``) for what is the device's own; ``make_device`` gets their values by name.

    Exits with 0 when it was asked to end, 1 if something failed, 2 if the command line is wrong.
    """

    @host_options
    def command(options: HostOptions, **arguments: object) -> None:
        serve_device(lambda _: make_device(**arguments), options)

    command.__doc__ = inspect.getdoc(make_device)
    made: click.Command = click.command()(add_options(command, options))
    names = [parameter.name for parameter in made.params]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"main(): every device already has an option {name!r}; choose another name")
    run(made)


def run(command: click.Command, prog_name: str | None = None) -> None:
    """Run a command line, and exit; nodma's errors become a line and an exit code: 2 for a wrong command line, else 1.

    Neither a closed nor a full stdout ends in a traceback.
    """
    output.secure_standard_descriptors()
    code: int = 0
    unsaid = ""
    try:
        status = command.main(standalone_mode=False, prog_name=prog_name)
        code = status if isinstance(status, int) else 0  # of a command that ended by Context.exit
    except NodmaError as error:
        output.say_error(str(error))
        code = MISUSED if isinstance(error, UsageError) and not isinstance(error, Unavailable) else FAILED
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        output.say_on_stderr(text.getvalue())
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else FAILED
    except OSError as error:  # of stdout, most of all: what commands do with files, they check
        code = FAILED
        if not isinstance(error, BrokenPipeError):  # else whoever reads has seen enough
            unsaid = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    failed = _close_stdout()
    if unsaid and not failed:  # else it was stdout, which that has said
        output.say_error(unsaid)
    sys.exit(failed or code)


def _close_stdout() -> int:
    """Write what stdout still holds, now, when it can be said that this failed; return the exit code for that."""
    failed = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:
                stream.flush()
        except OSError as error:
            failed = FAILED
            if not isinstance(error, BrokenPipeError):
                output.say_error(f"cannot write to {stream.name}: {error.strerror}")
            with contextlib.suppress(OSError):  # so that the interpreter does not try, and fail, again
                os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), stream.fileno())
    return failed


def prepare(verbose: int) -> None:
    """Make this process one that serves: standard descriptors, limits, log."""
    output.secure_standard_descriptors()
    raise_descriptor_limit()
    output.start_log(verbose)


def serve_device(make_device: Callable[[HostOptions], Device], options: HostOptions) -> None:
    """Serve a device until SIGTERM, SIGINT or SIGHUP; print a ready line when the socket accepts.

    At the end the requests that were taken are done, the device is drained, the socket file is gone.
    Raises NodmaError if it cannot be served; exits with 1 if something failed at its end.
    """
    if options.slot_fd is not None:
        end_with_parent()
    prepare(options.verbose)
    profile, policy = PROFILES[options.profile], Policy(options.policy)
    check_policy(profile, policy)
    listeners = Listeners(options.socket_mode, options.socket_group)
    make_listener = listeners.choose(options.socket_path, options.fd)
    settings = FunctionSettings(options.pool, profile, policy, options.poll, _shared_pool(options))

    def assemble(host: Host) -> None:
        host.add("the device", lambda: make_device(options), make_listener, settings)

    (report,) = serve(Host(), assemble, lambda host: _announce(options, host.functions[0]), auditable=options.auditable)
    _say_end(options, report)
    if report["problems"]:
        end_failed()


def end_failed() -> NoReturn:
    """End the process because something was not done, whatever its threads still wait for."""
    output.flush()
    os._exit(FAILED)


def _shared_pool(options: HostOptions) -> SharedPoolConfig | None:
    """Return with whom this function shares its window, if it does."""
    if options.slot_fd is None or options.pool_owner is None:
        return None
    try:
        keeper = RemoteKeeper(socket.socket(fileno=options.slot_fd))
        return SharedPoolConfig(keeper, None if options.pool_owner == "self" else int(options.pool_owner))
    except (OSError, ValueError) as error:
        raise UsageError(f"invalid --slot-fd or --pool-owner: {error}") from error


def _announce(options: HostOptions, hosted: HostedFunction) -> None:
    """Print the ready line."""
    argument = qemu_device(hosted.path)
    if options.as_json:
        record = {
            "event": "ready",
            "device": hosted.function.describe(),
            "socket": hosted.path,
            "pool": options.pool,
            "ring": "compiled" if COMPILED else "interpreted",
            "auditable": options.auditable,
            "qemu": ["-device", argument],
        }
        output.say_json(record)
    else:
        auditable = " (auditable)" if options.auditable else ""
        described = hosted.function.describe()
        output.say(f"ready{auditable}: {described} on {hosted.path}, attach: -device {shlex.quote(argument)}")


def _say_end(options: HostOptions, report: Report) -> None:
    """Report what happened in the whole life of the process."""
    if options.as_json:
        output.say_json({"event": "end"} | report)
    else:
        log.info("served: %s", report)
