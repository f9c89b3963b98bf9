"""A work directory is gone when its process is, however that ends; signals leave what was entered."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = """
import subprocess, sys, time
from nodma.guest.lifetime import ended_by_signals, ends_with_us, work_directory
with ended_by_signals(), work_directory("nodma-test-") as place:
    (place / "file").touch()
    child = subprocess.Popen(["sleep", "1000"], preexec_fn=ends_with_us())
    print(place, child.pid, flush=True)
    if sys.stdin.readline():
        child.kill()
        child.wait()
    else:
        time.sleep(1000)
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("how", [None, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_stays_behind(process: subprocess.Popen[str], how: signal.Signals | None) -> None:
    assert process.stdin
    assert process.stdout
    name, number = process.stdout.readline().split()
    place, child = Path(name), int(number)
    assert (place / "file").exists()
    if how is None:
        process.stdin.write("go on\n")
        process.stdin.flush()
    else:
        process.send_signal(how)
    status = process.wait(timeout=30)
    assert status == {None: 0, signal.SIGKILL: -signal.SIGKILL}.get(how, 128 + (how or 0))
    deadline = time.monotonic() + 30
    while place.exists() or not gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)
