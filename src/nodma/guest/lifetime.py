"""Nothing of a guest outlives the process that runs it: not QEMU, and not the directory of its files.

However that process ends, SIGKILL included: the kernel ends QEMU then, and a shell that waits for the end of a pipe
removes the directory.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)

# Signals to the terminal's processes do not concern it: its pipe ends when they are gone.
_REMOVE: Final = 'trap "" HUP INT QUIT TERM; read -r _; rm -rf -- "$1"'


def ends_with_us() -> Callable[[], None]:
    """Return what a child is to call before it becomes another program: it is killed when this process ends."""
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that took hold
            os.kill(os.getpid(), signal.SIGKILL)

    return prepare


@contextmanager
def work_directory(prefix: str) -> Iterator[Path]:
    """Make a temporary directory, and remove it when this process is done with it, or has ended."""
    place = Path(tempfile.mkdtemp(prefix=prefix))
    reader, writer = os.pipe()
    keeper = subprocess.Popen(
        ["sh", "-c", _REMOVE, "sh", place],
        stdin=reader,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    os.close(reader)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(writer)
        keeper.wait()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Leave the block by SystemExit when SIGTERM or SIGHUP comes, so that all that it entered is left too.

    The exit code is 128 and the signal's number, as a shell has it. For the main thread only.
    """

    def end(number: int, _: FrameType | None) -> NoReturn:
        for one in _ENDING:
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
