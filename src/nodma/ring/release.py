"""Enter a path's loop; compiled (``release.pxd``), without Python's lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nodma.ring.path import QueuePath


def loop(path: QueuePath) -> int:
    """Run :meth:`QueuePath.loop`."""
    return path.loop()


def work(path: QueuePath) -> None:
    """Run :meth:`QueuePath.work`."""
    path.work()
