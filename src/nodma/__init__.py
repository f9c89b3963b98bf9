"""Virtio devices in processes of their own that never touch guest memory.

What your own device needs is here: :class:`Device`, :class:`Queue`, :class:`Request`, the fields of a
:class:`Layout`, and :func:`main`. The other end is in :mod:`nodma.driver`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nodma.device.base import Device, Queue
    from nodma.hosting.program import main
    from nodma.ring import Request
    from nodma.spec.layout import Layout, blob, le16, le32, le64, u8

__version__: str
"""That of the package and of its kernel module: both read the file guest/linux/VERSION."""

__all__ = ["Device", "Layout", "Queue", "Request", "blob", "le16", "le32", "le64", "main", "u8"]

_HOMES = {
    "Device": "nodma.device.base",
    "Queue": "nodma.device.base",
    "Request": "nodma.ring",
    "main": "nodma.hosting.program",
} | dict.fromkeys(("Layout", "blob", "le16", "le32", "le64", "u8"), "nodma.spec.layout")


def __getattr__(name: str) -> Any:
    """Import a name from its home when it is asked for, so that ``import nodma`` costs nothing."""
    if name == "__version__":
        from pathlib import Path

        return (Path(__file__).parent / "guest" / "linux" / "VERSION").read_text().strip()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
