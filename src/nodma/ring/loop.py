"""What the threads of a queue run: compiled, they need Python's lock only where they call Python."""

from __future__ import annotations

import nodma.ring.release as release
from nodma.ring.path import QueuePath


def serve(path: QueuePath) -> int:
    """Serve a queue until its path is paused (gives PAUSED) or something is wrong (FAULT)."""
    return release.loop(path)


def work(path: QueuePath) -> None:
    """Handle what the queue's thread will not wait for, until the path is closed."""
    release.work(path)
