"""The one memory that both ends see, and the pool of bounce buffers in it.

This package alone maps memory. Whoever wants bytes of the window asks it, with an offset and a length.
"""

from nodma.window.pool import SLOT, BouncePool, Direction, Mapping, PoolStats
from nodma.window.reserved_pool import ReservedPool
from nodma.window.window import Window

__all__ = ["SLOT", "BouncePool", "Direction", "Mapping", "PoolStats", "ReservedPool", "Window"]
