"""A device process from outside: ``nodma serve blk`` as a child, and how a VMM attaches it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Self

from nodma.errors import NodmaError

_READY_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


class Served:
    """A process of ``nodma serve`` that is ready when this is made, and is ended by :meth:`stop`.

    ``ready`` is its ready line, ``startup`` the seconds until it came.
    """

    def __init__(self, *arguments: str) -> None:
        """Start it. Raises NodmaError, with what it said, if it does not become ready."""
        begin = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nodma", "serve", *arguments, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            _, said = self._process.communicate(timeout=_READY_SECONDS)
            raise NodmaError(f"the device process did not start: {said.strip()}")
        self.startup = time.monotonic() - begin
        self.ready: dict[str, Any] = json.loads(line)

    def stop(self) -> dict[str, Any]:
        """End it by SIGTERM; gives its last report. Raises NodmaError if it did not end well."""
        self._process.send_signal(signal.SIGTERM)
        out, said = self._process.communicate(timeout=_STOP_SECONDS)
        if self._process.returncode:
            raise NodmaError(f"the device process ended with {self._process.returncode}: {said.strip()}")
        report: dict[str, Any] = json.loads(out.splitlines()[-1])
        return report

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def kill(self) -> None:
        """End it by SIGKILL, in the middle of whatever it does."""
        self._process.kill()
        self._process.communicate()


class DeviceProcess(Served):
    """The process of a disk, ``nodma serve blk``."""

    def __init__(self, image: Path, socket: Path, *options: str) -> None:
        """Start it. Raises NodmaError, with what it said, if it does not become ready."""
        super().__init__("blk", "-s", str(socket), "--image", str(image), *options)


def end_with_parent() -> None:
    """Have this process ended by SIGTERM when its parent is gone. To be called first of all, by a child."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it went before that took hold
        os.kill(os.getpid(), signal.SIGTERM)


def qemu_device(path: str, **properties: str | bool) -> str:
    """Give the argument of QEMU's -device that attaches the socket at ``path``, with further properties."""
    return json.dumps(
        {"driver": "vfio-user-pci", **properties, "socket": {"path": path, "type": "unix"}}, separators=(",", ":")
    )
