"""Data that a device left in the pool, for another device to take from there: no copy on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from nodma.errors import UsageError
from nodma.window import BouncePool, Mapping, ReservedPool


class RetainedBuffer:
    """``length`` bytes in slots of a pool, which stay taken until :meth:`release`. ``mappings`` are its pieces."""

    def __init__(self, pool: BouncePool | ReservedPool, mappings: Sequence[Mapping]) -> None:
        self.pool = pool
        self.mappings = mappings
        self.length = sum(mapping.length for mapping in mappings)

    def parts(self, most: int) -> list[tuple[int, int]]:
        """Return offsets in the window and lengths, in pieces of at most ``most`` bytes.

        Raises UsageError if the slots were given back.
        """
        if not self.mappings:
            raise UsageError("these slots were released: what was in them is gone")
        return [
            (mapping.offset + at, min(most, mapping.length - at))
            for mapping in self.mappings
            for at in range(0, mapping.length, most)
        ]

    def release(self) -> None:
        """Free the slots. May be called twice. No device may have them any more."""
        mappings, self.mappings = self.mappings, ()
        for mapping in mappings:
            self.pool.unmap(mapping)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
