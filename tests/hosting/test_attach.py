"""What ties a device process to its parent, and to a VMM."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from typing import Any

import pytest

from nodma.hosting import attach
from nodma.hosting.attach import end_with_parent, qemu_device

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
print(child.pid, child.stdout.readline().decode(), flush=True)
sys.stdin.read()
"""
CHILD = "from nodma.hosting.attach import end_with_parent; end_with_parent(); print('on', flush=True); input()"


def test_a_child_ends_with_its_parent() -> None:
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid, word = parent.stdout.readline().split()
        assert word == "on"
        child = os.pidfd_open(int(pid))
        parent.kill()
        assert select.select([child], [], [], 30)[0]
        os.close(child)


def test_a_parent_that_was_gone_before_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def prctl(self, *_: int) -> int:
            return 0

    parents, sent = iter((7, 1)), []
    monkeypatch.setattr(attach.ctypes, "CDLL", lambda _: Libc())
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "kill", lambda *signalled: sent.append(signalled))
    end_with_parent()
    assert sent == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize("more", [{}, {"addr": "5.1", "multifunction": True}])
def test_the_argument_of_qemu_is_json_without_a_rom(more: dict[str, Any]) -> None:
    argument = json.loads(qemu_device('/tmp/a "b",c', **more))
    socket = {"path": '/tmp/a "b",c', "type": "unix"}
    assert argument == {"driver": "vfio-user-pci", "rombar": 0, "socket": socket} | more
