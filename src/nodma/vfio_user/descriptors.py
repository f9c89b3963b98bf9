"""What becomes of the descriptors that a client sends: eventfds are kept for its interrupts, all others are closed.

To close a stranger's descriptor can take forever. The last reference to a file frees its memory, or waits for a socket
that lingers; closing a file of FUSE waits for its server, in a way that not even SIGKILL ends. So nobody waits for it
longer than CLOSE_SECONDS:

- Memory, which a VMM sends with DMA_MAP, eventfds, and the clients' own sockets are closed by a thread. What an honest
  client can keep it with ends: freeing memory by itself, lingering by a signal. The last close of what is in an epoll
  waits for whoever uses that; one who has it wait for a page fault keeps the thread. Then another thread goes on.
- Anything else is closed by a child process that shares this one's table of descriptors and nothing else. A thread
  would not do: one that is stuck keeps its process from ending. No honest client makes that child necessary.

What is still open after that is counted: see :attr:`Descriptors.backlog`.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import platform
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import Final

from nodma.loop import interrupt

CLOSE_SECONDS: Final = 0.02
"""How long the caller waits for descriptors to be closed."""
MAX_BACKLOG: Final = 64
"""Descriptors that may wait to be closed; while there are more, no client is served."""
MAX_CHILDREN: Final = 8
"""Child processes that may be stuck at closing descriptors."""
MAX_THREADS: Final = 8
"""Threads that may be stuck at it."""
_KILL_SECONDS: Final = 1.0
"""How long a child may take before it is killed, which ends all but a wait for FUSE."""
_EVENTFD: Final = "anon_inode:[eventfd]"
_CLONE_FILES: Final = 0x400  # linux/sched.h
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_CLONE: Final = {"x86_64": 56, "aarch64": 220, "riscv64": 220}.get(platform.machine())


class Descriptors:
    """Closes the descriptors of clients. Used by one thread."""

    def __init__(self) -> None:
        self.refused = 0
        """Descriptors that were not eventfds, and were closed as they arrived, since the process began."""
        self._queue: queue.SimpleQueue[tuple[list[int], threading.Event] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._given = 0  # to the threads, by the caller
        self._closed = 0  # by the threads
        self._counting = threading.Lock()
        self._closed_before = 0  # when last looked after
        self._children: dict[int, tuple[float, int]] = {}  # by process id: when it began, how many it closes
        self._left: list[int] = []

    @property
    def backlog(self) -> int:
        """Descriptors that are not closed yet."""
        return self._given - self._closed + sum(count for _, count in self._children.values()) + len(self._left)

    def screen(self, fds: list[int]) -> list[int]:
        """Return those that are eventfds; the others are closed."""
        kept = [fd for fd in fds if _is_eventfd(fd)]
        if len(kept) < len(fds):
            refused = [fd for fd in fds if fd not in kept]
            self.refused += len(refused)
            self.close(refused)
        return kept

    def close(self, fds: Iterable[int]) -> None:
        """Close descriptors of any kind. Returns after CLOSE_SECONDS even if that takes longer."""
        quick: list[int] = []
        others: list[int] = []
        for fd in fds:
            (quick if _is_eventfd(fd) or _is_memory(fd) else others).append(fd)
        if quick:
            self._close_in_thread(quick)
        if others:
            self._left += others
            self._close_in_child()

    def close_socket(self, sock: socket.socket) -> None:
        """Close a client's socket. What it holds unread, descriptors for example, is dropped with it."""
        self._close_in_thread([sock.detach()])

    def look_after(self) -> None:
        """See which children are done, and start those that had to wait. To be called now and then."""
        now = time.monotonic()
        for pid, (begun, _) in list(self._children.items()):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    if now - begun >= _KILL_SECONDS:
                        os.kill(pid, signal.SIGKILL)
                    continue
            del self._children[pid]
        if self._given > self._closed:
            self._interrupt_threads()
            if self._closed == self._closed_before and 0 < len(self._threads) < MAX_THREADS:
                with contextlib.suppress(RuntimeError):
                    self._start_thread()
        self._closed_before = self._closed
        self._close_in_child()

    def end(self) -> None:
        """End the threads that nothing keeps."""
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads = []

    def _close_in_thread(self, fds: list[int]) -> None:
        try:
            if not self._threads:
                self._start_thread()
        except RuntimeError:  # out of threads: a child can do it, if there is room for one
            self._left += fds
            self._close_in_child()
            return
        done = threading.Event()
        self._given += len(fds)
        self._queue.put((fds, done))
        if not done.wait(CLOSE_SECONDS):
            self._interrupt_threads()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="closer", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _interrupt_threads(self) -> None:
        """End the lingering of sockets."""
        for thread in self._threads:
            interrupt(thread.ident or 0)

    def _run(self) -> None:
        while task := self._queue.get():
            fds, done = task
            for fd in fds:
                with contextlib.suppress(OSError):  # the last word of its file system; it is closed all the same
                    os.close(fd)
            with self._counting:
                self._closed += len(fds)
            done.set()

    def _close_in_child(self) -> None:
        if not self._left or len(self._children) >= MAX_CHILDREN:
            return
        pid = _clone_and_close(self._left)
        if pid > 0:
            atexit.unregister(_close_output)
            atexit.register(_close_output)
            self._children[pid] = time.monotonic(), len(self._left)
            self._left = []
            with contextlib.suppress(OSError):
                pid_fd = os.pidfd_open(pid)
                try:
                    ended = select.poll()
                    ended.register(pid_fd, select.POLLIN)
                    if ended.poll(CLOSE_SECONDS * 1000):
                        os.waitpid(pid, 0)
                        del self._children[pid]
                finally:
                    os.close(pid_fd)


def _is_eventfd(fd: int) -> bool:
    """Return whether a descriptor is an eventfd. Asks the kernel and no file system, which might not answer."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == _EVENTFD  # noqa: PTH115
    except OSError:
        return False


def _is_memory(fd: int) -> bool:
    """Return whether a descriptor is a file in memory, of memfd_create, tmpfs or hugetlbfs. Asks no file system."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def _close_output() -> None:  # pragma: no cover - nothing is measured any more
    """Let whoever reads our output see its end, even while a stuck child has the same descriptors. The last thing."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.closerange(0, 3)


def _clone_and_close(fds: list[int]) -> int:
    """Have a child process, which shares this one's table of descriptors, close some; return its id, or -1.

    The child calls nothing of Python's that waits for another thread: it has none.
    """
    if _CLONE is None:
        return -1
    import ctypes  # a device process hardly ever needs it

    c = ctypes.PyDLL(None)  # keeps Python's lock, which nobody could give back to the child
    zero = ctypes.c_long(0)
    pid: int = c.syscall(ctypes.c_long(_CLONE), ctypes.c_long(_CLONE_FILES | signal.SIGCHLD), zero, zero, zero, zero)
    if pid == 0:  # pragma: no cover - nothing measures this child
        try:
            c.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for fd in fds:
                c.close(fd)
        finally:
            c._exit(0)
    return pid
