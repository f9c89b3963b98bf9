"""Run each function of a slot as a process of its own, and keep the window that they share.

A child is handed its end of one socket, by which it asks for the window's descriptor, and nothing else. One that dies
takes no other along: the window's memory is there for as long as anybody has it.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

from nodma.errors import NodmaError
from nodma.hosting.slot_config import FunctionConfig, Role, SlotConfig
from nodma.pci_function import PoolKeeper

_START_SECONDS: Final = 30.0
_END_SECONDS: Final = 30.0
_KILL_SECONDS: Final = 5.0
_LINE_BYTES: Final = 1 << 20
"""A child that says more than that without a line's end is not one of ours."""

Report = dict[str, Any]


class Child:
    """The process of a function. ``ready`` and ``end`` are the lines that it said, once it has."""

    def __init__(self, slot: SlotConfig, config: FunctionConfig, verbose: int) -> None:
        self.config = config
        self.ready: Report | None = None
        self.end: Report | None = None
        self._said = b""
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setblocking(False)
        with theirs:
            self.process = subprocess.Popen(
                _command(slot, config, theirs.fileno(), verbose),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
        self.pid_fd = os.pidfd_open(self.process.pid)

    @property
    def owner(self) -> bool:
        """Whether the shared window is this function's."""
        return self.config.role is Role.OWNER

    def listen(self) -> bool:
        """Take what the child said; False at its end."""
        assert self.process.stdout
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            self._take(line)
        return bool(data) and len(self._said) < _LINE_BYTES

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            event = record["event"]
        except (ValueError, KeyError, TypeError):
            return  # a program of one's own may say what it likes, too
        if event == "ready":
            self.ready = record
        elif event == "end":
            self.end = record

    def close(self) -> None:
        """See it end, by force if need be, and let go of all that leads to it."""
        try:
            self.process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.channel.close()
        if self.process.stdout:
            self.process.stdout.close()
        os.close(self.pid_fd)


class Supervisor:
    """The processes of ``slot``, running while it is entered. ``died`` is called with each that ends by itself."""

    def __init__(self, slot: SlotConfig, *, died: Callable[[Child, int], None], verbose: int = 0) -> None:
        self.slot = slot
        self.children: list[Child] = []
        self._died = died
        self._verbose = verbose
        self._alive: set[Child] = set()
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ, lambda: None)
        self._keeper = PoolKeeper(slot.owner.pool) if slot.owner else None

    def __enter__(self) -> Supervisor:
        """Start the processes. Raises NodmaError, and ends them again, if one does not get ready."""
        try:
            for config in self.slot.functions:
                self._start(config)
            while not self._stopping and (waiting := [child for child in self.children if not child.ready]):
                if not self._step(_START_SECONDS):
                    raise NodmaError(f"{_name(waiting[0])} was not ready within {_START_SECONDS:g} s")
                for child in waiting:
                    if child not in self._alive:
                        raise NodmaError(f"{_name(child)} did not start; what it said is above")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End what still runs."""
        for child in self.children:
            child.process.terminate()
        for child in self.children:
            child.close()
        self._selector.close()
        os.close(self._wake)
        if self._keeper:
            self._keeper.close()

    def run(self) -> list[Report]:
        """Serve until :meth:`stop`, or all have ended; then give what each reported, in the order of functions."""
        while self._alive and not self._stopping:
            self._step(None)
        self._stopping = True
        for child in self._alive:
            child.process.send_signal(signal.SIGTERM)
        while self._alive:
            if not self._step(_END_SECONDS):
                break
        return [self._report(child) for child in self.children]

    def stop(self) -> None:
        """Have :meth:`run` return soon. May be called from a signal handler."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def _report(self, child: Child) -> Report:
        status = child.process.poll()
        return {
            "function": child.config.number,
            "status": "did not end" if status is None else status,
            "report": child.end,
        }

    def _start(self, config: FunctionConfig) -> None:
        child = Child(self.slot, config, self._verbose)
        self.children.append(child)
        self._alive.add(child)
        assert child.process.stdout
        self._watch(child.channel, lambda: self._answer(child))
        self._watch(child.process.stdout, lambda: self._listen(child))
        self._watch(child.pid_fd, lambda: self._ended(child))

    def _watch(self, source: Any, handle: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, handle)

    def _step(self, seconds: float | None) -> bool:
        """Wait for something to happen, and deal with it; False if nothing did."""
        events = self._selector.select(seconds)
        for key, _ in events:
            if key.fileobj in self._selector.get_map():  # what came before may have ended it
                key.data()
        return bool(events)

    def _answer(self, child: Child) -> None:
        """Hand out the window. A child that does not take its answers is one to talk to no more."""
        try:
            go_on = self._keeper is not None and self._keeper.answer(child.channel, owner=child.owner)
        except OSError:
            go_on = False
        if not go_on:
            self._selector.unregister(child.channel)
            child.channel.close()

    def _listen(self, child: Child) -> None:
        if not child.listen():
            self._selector.unregister(child.process.stdout)  # type: ignore[arg-type]

    def _ended(self, child: Child) -> None:
        status = child.process.wait()
        self._selector.unregister(child.pid_fd)
        self._alive.discard(child)
        while child.process.stdout in self._selector.get_map():
            self._listen(child)
        if not self._stopping and child.ready:
            self._died(child, status)


def _command(slot: SlotConfig, config: FunctionConfig, channel: int, verbose: int) -> list[str]:
    """Give the command line of a function's process."""
    words = list(config.program or (sys.executable, "-m", "nodma", "serve", config.device))
    words += ["--json", "--socket-path", str(config.socket), "--pool", str(config.pool), "--slot-fd", str(channel)]
    words += ["--profile", slot.profile, "--policy", slot.policy, *["-v"] * verbose, *["--poll"] * slot.poll]
    if config.role is not Role.PRIVATE:
        assert slot.owner
        words += ["--pool-owner", "self" if config.role is Role.OWNER else str(slot.owner.number)]
        words += ["--pool-users", str(len(slot.users))]
    for key, value in config.options.items():
        words += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return words


def _name(child: Child) -> str:
    return f"function {child.config.number} ({child.config.socket})"
