"""A device program with a bug in a callback: no client ends it, and it ends as others do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nodma.driver import VfioUserBus, VirtioPci
from nodma.errors import DeviceFailed, NegotiationError
from nodma.spec.virtio import Status

PROGRAM = """
import sys
from nodma import Device, Queue, Request, main

AT = sys.argv.pop(1)

class Buggy(Device):
    device_type = 0x2A
    queues = (Queue("rolls", size=64),)
    def rolls(self, request):
        request.write(b"x")

def bug(*arguments):
    raise KeyError("a bug")

setattr(Buggy, AT, bug)
main(Buggy)
"""


def asks_for_a_reset(path: Path) -> bool:
    """Start the device, write to it, and vanish without a reset; return whether it asked for one before that."""
    bus = VfioUserBus.connect(path)
    try:
        device = VirtioPci(bus)
        device.negotiate(wanted=0)
        device.set_up_queue(0, size=64)
        device.start()
        bus.write_bar(0, 0x2000, bytes(4))
        return bool(device.status & Status.DEVICE_NEEDS_RESET)
    except (DeviceFailed, NegotiationError):
        return True
    finally:
        bus.close()


@pytest.mark.parametrize(
    ("at", "asks"),
    [
        ("start", [True, True]),
        ("config_written", [True, True]),
        ("reset", [False, True]),  # the second driver finds what the first left
        ("drain", [False, False]),
        ("describe", [False, False]),
        ("statistics", [False, False]),
        ("close", [False, False]),
    ],
)
def test_no_callback_ends_the_process(tmp_path: Path, at: str, asks: list[bool]) -> None:
    program, path = tmp_path / "buggy.py", tmp_path / "s"
    program.write_text(PROGRAM)
    pipe = subprocess.PIPE
    command = [sys.executable, str(program), at, "-s", str(path), "--json"]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout
            assert json.loads(process.stdout.readline())["device"] == "Buggy"
            assert [asks_for_a_reset(path) for _ in asks] == asks
            assert process.poll() is None
            process.terminate()
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == (at == "close"), err  # what was written may not be durable then
    end = json.loads(out.splitlines()[-1])
    assert end["event"] == "end"
    if at not in ("close", "statistics"):  # these are called when the report is made, or after it
        assert end["last_reason"] == f"Buggy: {at}() failed: KeyError: 'a bug'"
    assert "KeyError: 'a bug'" in err
