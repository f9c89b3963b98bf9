"""What the threads of a queue run: compiled, they need Python's lock only where they call Python."""

from __future__ import annotations

import nodma.ring.without_gil as without_gil
from nodma.ring.engine import QueueEngine


def queue_main(engine: QueueEngine) -> int:
    """Serve a queue until its engine is paused (returns PAUSED) or something is wrong (FAULT)."""
    return without_gil.loop(engine)


def helper_main(engine: QueueEngine) -> None:
    """Handle what the queue's thread will not wait for, until the engine is closed."""
    without_gil.helper_main(engine)
