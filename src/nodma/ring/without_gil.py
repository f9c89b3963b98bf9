"""Enter an engine's loop; compiled (``release.pxd``), without Python's lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nodma.ring.engine import QueueEngine


def loop(engine: QueueEngine) -> int:
    """Run :meth:`QueueEngine.loop`."""
    return engine.loop()


def helper_main(engine: QueueEngine) -> None:
    """Run :meth:`QueueEngine.helper_main`."""
    engine.helper_main()
