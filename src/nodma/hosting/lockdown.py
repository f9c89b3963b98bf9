"""What a device process gives up before it serves anybody."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from nodma.errors import Unavailable

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h, as the next
_PR_SET_NO_NEW_PRIVS: Final = 38


def lock_down(*, auditable: bool) -> None:
    """Renounce new privileges, and unless ``auditable``, being inspected by processes of the same user.

    No program that this process or its children start gains privileges (set-user-ID, file capabilities). A process
    that is not dumpable leaves no core file, and no other process of its user may trace it, read its memory, or open
    what its descriptors lead to; root may. ``nodma demo`` and ``nodma guest prove`` need an auditable one.

    Raises Unavailable if the kernel refuses.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, int(auditable))


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero):
        reason = os.strerror(ctypes.get_errno())
        raise Unavailable(f"the kernel refused prctl({option}, {value}): {reason}; a device process needs Linux 3.5")
