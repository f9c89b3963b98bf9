"""However `nodma guest run` ends, QEMU, the device process and the directory of their files are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodma.guest import Kit

pytestmark = pytest.mark.timeout(900)

SECONDS = 60.0
"""How long may pass until all of it is gone: a limit, not an expectation."""


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def children_of(pid: int) -> dict[int, str]:
    """The processes whose parent this is: their numbers, and their command lines."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def exists(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def running(lab: Any, kit: Kit, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a guest that would run for long, with a disk; wait until its script is at work."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "nodma", "guest", "run", "--disk", lab.image(), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            start_new_session=True,
        )
        started.append(process)
        eventually(lambda: any("vfio-user-pci" in line for line in children_of(process.pid).values()), "no QEMU")
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("what", ["script", "shell"])
def test_nothing_is_left(running: Any, tmp_path: Path, how: signal.Signals, what: str) -> None:
    script = tmp_path / "script"
    script.write_text("sleep 10000\n")
    process = running(*(("--script", str(script)) if what == "script" else ()))
    children = children_of(process.pid)
    (work,) = tmp_path.glob("nodma-guest-*")
    assert sum("nodma serve blk" in line for line in children.values()) == 1
    process.send_signal(how)
    process.wait(timeout=SECONDS)
    assert process.returncode in (-how, 128 + how)
    eventually(lambda: not any(exists(child) for child in children), f"{children} are left")
    eventually(lambda: not work.exists(), f"{work} is left")
