"""The native parts of the benchmarks, compiled when they are first used; the structures are those of native.h."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from nodma.errors import NodmaError, UsageError

MAX_DEPTH: Final = 256
MAX_KICK: Final = 64
SUB_BITS: Final = 5
BUCKETS: Final = 60 << SUB_BITS

_HERE: Final = Path(__file__).parent
_BUILT: Final = _HERE.parent / "results"
_FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-fPIC", "-shared")


class Queue(ctypes.Structure):
    """struct queue."""

    _fields_ = (
        ("base", ctypes.c_uint64),
        ("desc", ctypes.c_uint64),
        ("avail", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
        ("cells", ctypes.c_uint64),
        ("data", ctypes.c_uint64),
        ("cell_bytes", ctypes.c_uint32),
        ("entries", ctypes.c_uint32),
        ("depth", ctypes.c_uint32),
        ("kick_fd", ctypes.c_int32),
        ("kick_bytes", ctypes.c_uint32),
        ("added", ctypes.c_uint16),
        ("seen", ctypes.c_uint16),
        ("kick", ctypes.c_uint8 * MAX_KICK),
        ("sent", ctypes.c_int64 * MAX_DEPTH),
    )


class Load(ctypes.Structure):
    """struct load."""

    _fields_ = (
        ("blocks", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("nanoseconds", ctypes.c_int64),
        ("bytes", ctypes.c_uint32),
        ("segment", ctypes.c_uint32),
        ("write", ctypes.c_uint32),
        ("polled", ctypes.c_uint32),
        ("call_fd", ctypes.c_int32),
        ("stop", ctypes.c_uint32),
    )


class Result(ctypes.Structure):
    """struct result."""

    _fields_ = (
        ("done", ctypes.c_uint64),
        ("failed", ctypes.c_uint64),
        ("kicks", ctypes.c_uint64),
        ("sleeps", ctypes.c_uint64),
        ("nanoseconds", ctypes.c_int64),
        ("cpu", ctypes.c_int64),
        ("latencies", ctypes.c_uint64 * BUCKETS),
    )


@cache
def library() -> ctypes.CDLL:
    """Return the compiled parts. Raises UsageError if there is no C compiler, NodmaError if it fails."""
    sources = sorted(_HERE.glob("*.[ch]"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    built = _BUILT / f"native-{digest}.so"
    if not built.exists():
        _compile([path for path in sources if path.suffix == ".c"], built)
    loaded = ctypes.CDLL(str(built))
    sizes = tuple((ctypes.c_uint32 * 3).in_dll(loaded, "front_sizes"))
    expected = tuple(ctypes.sizeof(structure) for structure in (Queue, Load, Result))
    if sizes != expected:
        raise NodmaError(f"benchmarks/native: structures of {expected} bytes here, of {sizes} in native.h")
    return loaded


def check(status: int, what: str) -> None:
    """Raise NodmaError if a native function gave -errno."""
    if status < 0:
        raise NodmaError(f"{what}: {os.strerror(-status)}")


def address_of(memory: memoryview) -> ctypes.c_void_p:
    """Where a mapping begins, for the native parts; good while somebody holds ``memory``."""
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_uint8.from_buffer(memory)))


def _compile(sources: list[Path], built: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise UsageError("the benchmarks' front end is in C, and there is no compiler: install gcc, or set CC")
    built.parent.mkdir(parents=True, exist_ok=True)
    growing = built.with_suffix(f".{os.getpid()}")
    done = subprocess.run([compiler, *_FLAGS, *sources, "-o", growing], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NodmaError(f"the benchmarks' front end does not compile:\n{done.stderr}")
    growing.rename(built)
