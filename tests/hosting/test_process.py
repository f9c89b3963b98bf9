"""A device process as a child that is read all the time, started and ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nodma.errors import NodmaError
from nodma.hosting import process as module
from nodma.hosting.process import DeviceProcess, Served

CHATTERBOX = """
import signal, sys, json
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print(json.dumps({"event": "ready"}), flush=True)
for stream in (sys.stdout, sys.stderr):
    for _ in range(300):
        print("x" * 999, file=stream, flush=True)
signal.sigwait({signal.SIGTERM})
print(json.dumps({"event": "end", "all": "said"}), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is run instead of Python: a program that the test writes."""
    path = tmp_path / "program"
    monkeypatch.setattr(module.sys, "executable", str(path))
    return path


def write(program: Path, code: str) -> None:
    program.write_text(f"#!{PYTHON}\n{code}")
    program.chmod(0o755)


PYTHON = sys.executable


def test_it_is_read_all_the_time(program: Path) -> None:
    """What it says is more than fits the pipes: unread, it would not get as far as SIGTERM."""
    write(program, CHATTERBOX)
    with Served("blk") as served:
        assert served.ready == {"event": "ready"}
        assert served.stop() == {"event": "end", "all": "said"}
        assert served.said.endswith("x" * 999)


def test_what_it_said_is_in_the_error(tmp_path: Path, program: Path) -> None:
    write(program, "import sys; sys.exit('no such luck')")
    with pytest.raises(NodmaError, match="the device process did not start: no such luck"):
        Served("blk")
    write(program, "print('nonsense', flush=True)\nimport time; time.sleep(999)")
    with pytest.raises(NodmaError, match="did not start"):
        Served("blk")
    write(program, CHATTERBOX + "sys.exit(3)")
    with Served("blk") as served, pytest.raises(NodmaError, match="ended with 3"):
        served.stop()


def test_one_that_does_not_end_is_killed(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.2)
    write(program, CHATTERBOX.replace("signal.sigwait({signal.SIGTERM})", "signal.sigwait({signal.SIGURG})"))
    with Served("blk") as served, pytest.raises(NodmaError, match=r"did not end within 0\.2 s"):
        served.stop()


def test_a_disk(tmp_path: Path, image: Path) -> None:
    with DeviceProcess(image, tmp_path / "s", "--serial", "me") as disk:
        assert disk.ready["socket"] == str(tmp_path / "s")
        assert json.dumps(disk.stop()["device"])
