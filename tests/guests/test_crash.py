"""The device process is killed in the middle of fio, and served again to a new machine."""

from __future__ import annotations

import ctypes
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nodma.errors import GuestError
from nodma.guest import Job, Kernel
from nodma.hosting.process import DeviceProcess
from nodma.procfs import ProcessView

pytestmark = pytest.mark.timeout(900)
RECORDS = 25


PIDFD_GETFD = 438
QEMU_DEFECT = "error_setv: Assertion"


def connection_of(device: DeviceProcess) -> socket.socket:
    """The other end of QEMU's socket, taken out of the device process."""
    process = os.pidfd_open(device.pid)
    try:
        for descriptor in ProcessView(device.pid).descriptors():
            if descriptor.target.startswith("socket:"):
                copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, process, descriptor.fd, 0)
                assert copy >= 0, os.strerror(ctypes.get_errno())
                sock = socket.socket(fileno=copy)
                if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock.family == socket.AF_UNIX:
                    try:
                        if sock.getsockname() == device.ready["socket"]:
                            return sock
                    except OSError:
                        pass
                sock.close()
    finally:
        os.close(process)
    raise AssertionError("the device has no connection")


def crash_job(lab: Any) -> Job:
    return Job((lab.scenarios / "crash.sh").read_text(), drivers=["nodma", "virtio_blk"], programs=["fio"])


def check_records(lab: Any, kernel: Kernel, image: Path, flushed: int) -> None:
    """A new device process and a new machine find every record that was flushed."""
    assert flushed >= RECORDS
    run = lab.run(kernel, "after_crash", [image])
    assert int(run.outcome.file("records")) >= flushed
    assert run.outside == 0


@pytest.mark.quick_on_debug
def test_io_ends_in_errors_and_all_that_was_flushed_survives(lab: Any, kernel: Kernel) -> None:
    """QEMU sees the end of a stream that was read to its end; see below for what it does otherwise."""
    image = lab.image()
    with lab.serve(image) as device, lab.machine(kernel, crash_job(lab), [image]) as machine:
        machine.console.expect(f"FLUSHED {RECORDS}", 200)
        with connection_of(device) as connection:
            device.kill()
            connection.setblocking(False)
            try:
                while connection.recv(4096):
                    pass
            except BlockingIOError:
                pass
        machine.console.expect(r"WRITE FAILED \d+", 200)
        assert machine.console.expect(r"FIO ENDED (\d+)", 200)[1] != "0"
        outcome = machine.finish(400)
    assert outcome.file("broken").strip() == "1"
    assert "answers with ones only, it is gone: given up" in outcome.file("dmesg")
    assert outcome.file("unbound") == "gone\n"
    check_records(lab, kernel, image, int(outcome.file("flushed")))


def test_killed_at_any_moment_nothing_that_was_flushed_is_lost(lab: Any, newest: Kernel) -> None:
    """A process that dies before it read all that it was sent resets the stream, and QEMU 11.1 aborts then."""
    image = lab.image()
    with lab.serve(image) as device, lab.machine(newest, crash_job(lab), [image]) as machine:
        machine.console.expect(f"FLUSHED {RECORDS}", 200)
        device.kill()
        outcome = None
        with suppress(GuestError):
            outcome = machine.finish(400)
        flushed = machine.console.text.count("FLUSHED ")
    aborted = QEMU_DEFECT in (lab.directory / "qemu.log").read_text()
    assert aborted != bool(outcome), "either QEMU aborts, or the guest goes on to the end"
    check_records(lab, newest, image, flushed)
