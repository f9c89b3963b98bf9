"""Limits of the system, looked at before anything is served: a device that says "ready" has what it needs."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodma.errors import Unavailable
from nodma.pci_function.queue_thread import HELPERS

QUEUE_DESCRIPTORS: Final = 8
"""Descriptors of a queue in use: doorbell, the engine's epoll, control eventfd, two pipes, and its vector's eventfd."""
QUEUE_THREADS: Final = 1 + HELPERS
"""Threads of a queue in use."""
FUNCTION_DESCRIPTORS: Final = 96
"""Descriptors of a function beside its queues: sockets, image, windows, eventfds, and what a client sends along."""
_PROCESS_DESCRIPTORS: Final = 32
_PROCESS_THREADS: Final = 8


@dataclass(slots=True)
class Needs:
    """What the functions of a process need at most, added up."""

    queues: int = 0
    functions: int = 0

    @property
    def descriptors(self) -> int:
        """Open files."""
        return _PROCESS_DESCRIPTORS + FUNCTION_DESCRIPTORS * self.functions + QUEUE_DESCRIPTORS * self.queues

    @property
    def threads(self) -> int:
        """Threads."""
        return _PROCESS_THREADS + QUEUE_THREADS * self.queues

    def add(self, queues: int) -> None:
        """Add a function with so many queues. Raises Unavailable if the limits of this process do not allow it."""
        self.queues += queues
        self.functions += 1
        files = raise_descriptor_limit()
        if self.descriptors > files:
            raise Unavailable(
                f"{self.queues} queues need up to {self.descriptors} open files, and the hard limit of this process is"
                f" {files}: raise it (ulimit -Hn, LimitNOFILE= of a systemd unit), or use fewer queues"
            )
        threads = _thread_limit()
        if threads is not None and self.threads > threads:
            raise Unavailable(
                f"{self.queues} queues need up to {self.threads} threads, and this process may have {threads}: raise"
                " the limit (ulimit -u, TasksMax= of a systemd unit), or use fewer queues"
            )


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, which nothing here minds; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # beyond fs.nr_open, which was lowered
            return soft
    return hard


def _thread_limit() -> int | None:
    """Return how many threads this process may have, as far as limits say so."""
    limits = []
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.geteuid():
        limits.append(soft)
    for group in _control_groups():
        try:
            most = (group / "pids.max").read_text().strip()
            if most != "max":
                limits.append(int(most) - int((group / "pids.current").read_text()))
        except (OSError, ValueError):  # not a group that counts processes
            continue
    return min(limits, default=None)


def _control_groups() -> list[Path]:
    """Return the control groups that may limit this process, of versions 1 and 2, with those above them."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "pids"):
            group = root / controllers / path.lstrip("/")
            found += [group, *(above for above in group.parents if above.is_relative_to(root))]
    return found
