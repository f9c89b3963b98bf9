"""What can be seen of a process from outside."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys

import pytest

from nodma.errors import UsageError
from nodma.procfs import ProcessView
from nodma.window import Window


def test_a_mapping_a_descriptor_and_the_bytes_in_it_are_found() -> None:
    canary = secrets.token_bytes(32)
    view = ProcessView(os.getpid())
    with Window.create(65536) as window:
        inode = os.fstat(window.fd).st_ino
        (mapped,) = [mapped for mapped in view.maps() if mapped.inode == inode and mapped.writable_shared]
        assert (mapped.size, mapped.permissions) == (65536, "rw-s")
        assert inode in {item.inode for item in view.descriptors()}
    assert inode not in {item.inode for item in view.descriptors()}
    assert view.contains(canary)
    assert view.resident() > view.resident_shared() >= 0


def test_a_canary_is_found_in_a_child_only_where_it_is() -> None:
    canary = secrets.token_hex(16)
    program = (
        "import sys; kept = sys.stdin.readline().strip() if sys.argv[1] == 'keep' else 0; print(1, flush=True); input()"
    )
    for keep in ("keep", "not"):
        with subprocess.Popen(
            [sys.executable, "-c", program, keep], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdin
            assert child.stdout
            if keep == "keep":
                child.stdin.write(canary + "\n")
                child.stdin.flush()
            child.stdout.readline()
            assert ProcessView(child.pid).contains(canary.encode()) == (keep == "keep")
            child.stdin.write("\n")


def test_a_process_that_is_gone_is_a_clear_error() -> None:
    for look in (ProcessView.maps, ProcessView.descriptors, ProcessView.resident):
        with pytest.raises(UsageError, match="process 999999999 cannot be looked at"):
            look(ProcessView(999999999))
    with pytest.raises(UsageError, match="cannot be looked at"):
        ProcessView(999999999).contains(b"x")
