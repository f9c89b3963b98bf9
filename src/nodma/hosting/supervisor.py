"""Run each function of a slot as a process of its own, and keep the window that they share.

A child is handed its end of one socket, by which it asks for the window's descriptor, and nothing else of the others.
One that dies takes no other along: the window's memory is there for as long as anybody has it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, Self

from nodma.errors import NodmaError, Unavailable
from nodma.hosting import output
from nodma.hosting.child import Child, Report
from nodma.hosting.listeners import Listeners
from nodma.hosting.signals import STOP_SECONDS
from nodma.hosting.slot_config import FunctionConfig, SlotConfig
from nodma.loop import Handle, Loop
from nodma.pci_function import PoolKeeper

START_SECONDS: Final = 30.0
"""How long a process may take to be ready."""
END_SECONDS: Final = STOP_SECONDS + 5.0
"""How long processes may take to end when they were asked to, before they are killed."""
KILL_SECONDS: Final = 5.0
"""How long killed processes may take to be gone."""
_LAST_WORDS_SECONDS: Final = 2.0


class Supervisor:
    """The processes of ``slot``, running while it is entered.

    ``died`` is called with each that ends by itself. ``words`` are options that each of them gets.
    """

    def __init__(
        self, slot: SlotConfig, *, died: Callable[[Child, int], None], listeners: Listeners, words: Sequence[str] = ()
    ) -> None:
        self.slot = slot
        self.children: list[Child] = []
        self.loop = Loop()
        self._died = died
        self._listeners = listeners
        self._words = words
        self._handles: dict[Child, list[Handle]] = {}
        self._stopping = False
        self._keeper = PoolKeeper(slot.owner.pool) if slot.owner else None

    def __enter__(self) -> Self:
        """Start the processes. Raises NodmaError, and ends them again, if one does not get ready."""
        try:
            for config in self.slot.functions:
                self._start(config)
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End what still runs."""
        self._end()
        for child in self.children:
            child.close()
        self.loop.close()
        if self._keeper:
            self._keeper.close()

    def run(self) -> list[Report]:
        """Serve until :meth:`stop`, or all have ended; then return what each reported, in the order of functions."""
        if self._alive:
            self.loop.run()
        self._end()
        return [
            {"function": child.config.number, "status": _show_status(child), "report": child.end}
            for child in self.children
        ]

    def stop(self) -> None:
        """Have :meth:`run` return soon. For any thread."""
        self._stopping = True
        self.loop.stop()

    def reload(self) -> None:
        """Have each function look at its back end again. For any thread."""
        for child in self.children:
            if child.ready is not None:
                child.signal(signal.SIGUSR1)

    def give_up(self, reason: str) -> NoReturn:
        """End all processes, and this one, as they are. For any thread."""
        left = [child for child in self.children if child.status is None]
        for child in left:
            child.signal(signal.SIGTERM)  # the second one: each says what it did not do
        time.sleep(_LAST_WORDS_SECONDS)
        for child in left:
            child.kill()
        names = ", ".join(child.config.name for child in left)
        output.say_error(f"ended by force, because {reason}; still running: {names or 'nothing'}")
        output.flush()
        os._exit(1)

    @property
    def _alive(self) -> list[Child]:
        return [child for child in self.children if child.status is None]

    def _start(self, config: FunctionConfig) -> None:
        child = Child(self.slot, config, self._words, self._listeners.handed_over(config.socket))
        self.children.append(child)
        self._handles[child] = [
            self.loop.add_reader(child.channel.fileno(), lambda: self._answer(child)),
            self.loop.add_reader(child.stdout, lambda: self._listen(child)),
            self.loop.add_reader(child.pid_fd, lambda: self._ended(child)),
        ]

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while not self._stopping and (waiting := [child for child in self.children if child.ready is None]):
            for child in waiting:
                if child.complaint:
                    raise NodmaError(f"{child.config.name}: {child.complaint}")
                if child.status is not None:
                    raise Unavailable(f"{child.config.name} did not start; what it said is above")
            left = end - time.monotonic()
            if left <= 0:
                raise Unavailable(f"{waiting[0].config.name} was not ready within {START_SECONDS:g} s")
            self.loop.step(left)

    def _answer(self, child: Child) -> None:
        """Hand out the window. A child that does not take its answers gets no more of them."""
        try:
            go_on = self._keeper is not None and self._keeper.answer(child.channel, owner=child.is_owner)
        except OSError:
            go_on = False
        if not go_on:
            self._handles[child][0].cancel()
            child.channel.close()

    def _listen(self, child: Child) -> None:
        if not child.listen():
            self._handles[child][1].cancel()

    def _ended(self, child: Child) -> None:
        for handle in self._handles[child]:
            handle.cancel()
        child.reap()
        if not self._stopping and child.ready is not None:
            self._died(child, child.status or 0)
        if not self._alive:
            self.loop.stop()

    def _end(self) -> None:
        """End what still runs: in order, and what does not do so in time by force."""
        self._stopping = True
        for child in self._alive:
            child.ask_to_end()
        self._wait_for_ends(END_SECONDS)
        for child in self._alive:
            output.say_error(f"{child.config.name} did not end within {END_SECONDS:g} s, and is killed")
            child.kill()
        self._wait_for_ends(KILL_SECONDS)

    def _wait_for_ends(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._alive and (left := end - time.monotonic()) > 0:
            self.loop.step(left)


def _show_status(child: Child) -> int | str:
    return "did not end" if child.status is None else child.status
