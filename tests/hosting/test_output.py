"""What is said to readers that do not read, that are gone, or that are the journal."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodma.hosting import output as module
from nodma.hosting.output import BUFFER_BYTES, FORMAT, Outlet

SAY = """
import sys
from nodma.hosting import output
output.secure_standard_descriptors()
output.start_log(2)
{}
"""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    os.close(ends[0])


def python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SAY.format(code)], text=True, timeout=60, check=False, **(options or CAPTURED)
    )


CAPTURED: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def test_whoever_writes_does_not_wait_for_a_reader(pipe: tuple[int, int]) -> None:
    outlet = Outlet(pipe[1])
    line = "x" * 999 + "\n"
    count = 2 * BUFFER_BYTES // len(line)
    for _ in range(count):
        outlet.write(line)
    assert not outlet.flush(0.01)
    got = b""
    while b"were dropped" not in got:
        got += os.read(pipe[0], 1 << 16)
    assert outlet.flush(30)
    os.close(pipe[1])
    *lines, last = got.decode().splitlines(keepends=True)
    assert set(lines) == {line}
    left_out = int(last.removeprefix("nodma: WARNING: ").split()[0])
    assert (len(lines) + left_out, left_out > 0) == (count, True)


def test_a_descriptor_that_somebody_made_non_blocking_gets_all(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    outlet = Outlet(pipe[1])
    outlet.write("y" * (BUFFER_BYTES - 1))
    got = b""
    while len(got) < BUFFER_BYTES - 1:
        got += os.read(pipe[0], 1 << 16)
    assert outlet.flush(30)
    os.close(pipe[1])


def test_a_reader_that_is_gone_and_a_full_disk_are_nothing_to_complain_of() -> None:
    with Path("/dev/full").open("w") as full:
        done = python(
            "output.say('out'); output.log = None\nimport logging; logging.error('err')", stdout=full, stderr=full
        )
    assert done.returncode == 0
    read, write = os.pipe()
    os.close(read)
    done = python("for _ in range(9): output.say('out')", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_descriptors_are_not_taken_by_files() -> None:
    """An image that was opened as descriptor 1 would be written over by what is printed."""
    script = SAY.format("import os; fd = os.open('/dev/zero', 0); assert fd > 2, fd; output.say('out')")
    done = subprocess.run(
        ["bash", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, script], timeout=60, check=False
    )
    assert done.returncode == 0


def test_lines_for_people_and_for_programs() -> None:
    done = python(
        "output.say('one'); output.say_json({'event': 'x'}); output.say_error('bad')\nimport logging\nlogging.info('i')"
    )
    assert done.stdout == f'one\n{{"format": {FORMAT}, "event": "x"}}\n'
    assert done.stderr == "nodma: error: bad\nnodma: INFO: i\n"


def test_the_journal_gets_priorities() -> None:
    read, write = os.pipe()
    status = os.fstat(write)
    code = "\n".join(
        f"import logging; logging.{level}('{level}\\nmore')" for level in ("debug", "info", "warning", "error")
    )
    environment = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    python(code + "\noutput.say_error('bad')", stderr=write, env=environment)
    os.close(write)
    with os.fdopen(read) as said:
        lines = said.read().splitlines()
    assert [line[:3] for line in lines] == ["<7>", "<7>", "<6>", "<6>", "<4>", "<4>", "<3>", "<3>", "<3>"]
    assert lines[-1] == "<3>nodma: error: bad"


def test_another_journal_stream_is_not_ours() -> None:
    done = python("import logging; logging.error('e')", env=os.environ | {"JOURNAL_STREAM": "1:2"}, **CAPTURED)
    assert done.stderr == "nodma: ERROR: e\n"


def test_a_record_that_cannot_be_formatted_does_not_raise() -> None:
    done = python("import logging; logging.error('%d', 'x'); logging.error('next')")
    assert done.stderr == "nodma: ERROR: next\n"
    assert logging.raiseExceptions


def test_without_a_thread_nothing_is_said_and_nobody_waits(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    outlet = Outlet(pipe[1])
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        outlet.write("lost\n")
        assert outlet.flush(0)
    outlet.write("said\n")
    assert outlet.flush(30)
    assert os.read(pipe[0], 99) == b"said\n"
    os.close(pipe[1])


def test_out_of_memory_a_line_is_lost_and_the_next_is_said(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module._write_all
    failing = iter((True, False))

    def fail_once(fd: int, data: bytes) -> None:
        if next(failing):
            raise MemoryError
        write(fd, data)

    monkeypatch.setattr(module, "_write_all", fail_once)
    outlet = Outlet(pipe[1])
    outlet.write("lost\n")
    assert outlet.flush(30)
    outlet.write("said\n")
    assert os.read(pipe[0], 99) == b"said\n"
    os.close(pipe[1])
