"""What ties a device process to those around it: its parent, and the VMM that attaches its socket."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Have this process ended by SIGTERM when its parent is gone. To be called first of all, by a child."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it went before that took hold
        os.kill(os.getpid(), signal.SIGTERM)


def qemu_device(path: str, **properties: str | bool) -> str:
    """Return the argument of QEMU's -device that attaches the socket at ``path``, with further properties.

    With ``rombar`` 0 QEMU asks the device process for no expansion ROM, and shows the guest none: OVMF would execute it
    with the firmware's rights, and so with all of the guest's memory.
    """
    device = {"driver": "vfio-user-pci", **properties, "rombar": 0, "socket": {"path": path, "type": "unix"}}
    return json.dumps(device, separators=(",", ":"))
