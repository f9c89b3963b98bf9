"""How the ring reads and orders shared memory, for the interpreted run.

Compiled, the same names come from ``atomics.pxd``: loads, and inline C11 atomics. Interpreted, an item of a
cast memoryview is loaded and stored by one instruction, and the interpreter runs enough code between any
two of them that only the processor could reorder: on x86 nothing but a store with a later load, which is
what :func:`full_fence` is for.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import struct
import threading
from collections.abc import Callable

from nodma.spec.virtio import Descriptor

_SEQ_CST = 5

load_descriptor: Callable[[memoryview, int], tuple[int, int, int, int]] = Descriptor.codec.unpack_from
"""Load addr, len, flags and next of the descriptor at an offset that lies inside the memory."""


load_pair: Callable[[memoryview, int], tuple[int, int]] = struct.Struct("<QQ").unpack_from
"""Load two 64-bit numbers from an offset that lies inside the memory."""


def numbers(code: str, count: int) -> list[int]:  # noqa: ARG001 - C needs to know how wide they are
    """Make room for so many numbers (B, H, I, Q: 8 to 64 bits each) that no other process sees.

    Compiled these are machine words; interpreted, a list is what is fastest.
    """
    return [0] * count


def _lock_fence() -> Callable[[], object]:
    """Take and give back a lock: an atomic read-modify-write, which on x86 is a full fence."""
    lock = threading.Lock()

    def fence() -> None:
        lock.acquire()
        lock.release()

    return fence


def _atomic_fence() -> Callable[[], object]:  # pragma: no cover - on other machines than x86
    """Call libatomic's fence, where a lock orders less than the store-to-load race needs."""
    name = ctypes.util.find_library("atomic")
    if name is None:  # pragma: no cover
        raise ImportError("on this machine the interpreted ring needs libatomic (Debian: libatomic1)")
    fence = ctypes.CDLL(name).atomic_thread_fence
    fence.argtypes, fence.restype = [ctypes.c_int], None
    return lambda: fence(_SEQ_CST)


if platform.machine() in ("x86_64", "AMD64", "i686"):
    full_fence = _lock_fence()

    def load_acquire(words: memoryview, index: int) -> int:
        """Load a 16-bit index that the other end publishes; what it published before is visible after."""
        value: int = words[index]  # x86 keeps loads with loads
        return value

    def store_release(words: memoryview, index: int, value: int) -> None:
        """Store a 16-bit index that the other end waits for; what was written before is visible with it."""
        words[index] = value  # x86 keeps stores with stores

else:  # pragma: no cover
    full_fence = _atomic_fence()

    def load_acquire(words: memoryview, index: int) -> int:
        """Load a 16-bit index that the other end publishes; what it published before is visible after."""
        value: int = words[index]
        full_fence()
        return value

    def store_release(words: memoryview, index: int, value: int) -> None:
        """Store a 16-bit index that the other end waits for; what was written before is visible with it."""
        full_fence()
        words[index] = value
