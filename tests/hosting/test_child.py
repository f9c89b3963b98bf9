"""Processes of a slot that behave badly, and a supervisor that goes on."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.errors import NodmaError, Unavailable
from nodma.hosting import supervisor as module
from nodma.hosting.child import LINE_BYTES, Child, Lines
from nodma.hosting.listeners import Listeners
from nodma.hosting.slot_config import make_config
from nodma.hosting.supervisor import Supervisor

READY = """print('{"event": "ready", "device": "it"}', flush=True)\n"""
WAIT = "import signal; signal.sigwait({signal.SIGTERM})\n"
END = """print('{"event": "end", "all": "done"}', flush=True)\n"""
GOOD = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n" + READY + WAIT + END

MakeSupervisor = Callable[..., Supervisor]


@pytest.fixture
def died() -> list[tuple[int, int]]:
    return []


@pytest.fixture
def supervise(tmp_path: Path, died: list[tuple[int, int]]) -> MakeSupervisor:
    """Make a supervisor of programs in Python."""

    def make(*programs: str, **more: object) -> Supervisor:
        functions = [
            {"program": [sys.executable, "-c", code], "socket": str(tmp_path / f"{number}.sock")}
            for number, code in enumerate(programs)
        ]
        return Supervisor(
            make_config({"function": functions} | more),
            died=lambda child, status: died.append((child.config.number, status)),
            listeners=Listeners(),
        )

    return make


def step_until(supervisor: Supervisor, condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        supervisor.loop.step(1)


def test_good_ones_are_started_and_ended(supervise: MakeSupervisor) -> None:
    with supervise(GOOD, GOOD) as supervisor:
        assert [child.ready for child in supervisor.children] == ["it", "it"]
        supervisor.stop()
        assert [(report["status"], report["report"]["all"]) for report in supervisor.run()] == [(0, "done")] * 2


@pytest.mark.parametrize(
    "nonsense",
    [
        "print('[' * 200000)",
        "print('{\"a\":' * 50000)",
        "print('\"')",
        'print(\'{"event": ["ready"]}\')',
        'print(\'{"event": "end", "x": NaN}\')',
        "print('9' * 60000)",
        "print('x' * 3000000)",
        "import sys; sys.stdout.buffer.write(bytes(range(256)) * 99 + b'\\n')",
    ],
)
def test_nonsense_is_ignored_before_it_is_ready_and_after(supervise: MakeSupervisor, nonsense: str) -> None:
    code = f"{nonsense}\n{GOOD.replace(WAIT, nonsense + chr(10) + WAIT)}"
    with supervise(GOOD, code) as supervisor:
        supervisor.stop()
        assert [(report["status"], report["report"]["all"]) for report in supervisor.run()] == [(0, "done")] * 2


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"event": "ready", "format": 2, "device": "x"}', "its ready line has format 2, expected 1"),
        ('{"event": "ready", "format": 1}', 'its ready line has no "device"'),
        ('{"event": "ready", "device": ["x"]}', 'its ready line has no "device"'),
    ],
)
def test_a_ready_line_that_is_wrong_is_said(supervise: MakeSupervisor, line: str, why: str) -> None:
    with (
        pytest.raises(NodmaError, match=rf"function 1 .*: {why}"),
        supervise(GOOD, f"print('{line}', flush=True)\n{WAIT}"),
    ):
        pass


def test_what_a_device_is_called_cannot_upset_a_terminal(supervise: MakeSupervisor) -> None:
    code = GOOD.replace('"it"', '"' + "\\\\u001b[2J" + "y" * 999 + '"')
    with supervise(code) as supervisor:
        assert supervisor.children[0].ready == "?[2J" + "y" * 196


def test_one_that_is_gone_at_once_or_cannot_be_run(supervise: MakeSupervisor) -> None:
    with (
        pytest.raises(Unavailable, match=r"function 1 .* did not start; what it said is above"),
        supervise(GOOD, "pass"),
    ):
        pass
    supervisor = supervise(GOOD)
    object.__setattr__(supervisor.slot.functions[0], "program", ("/no/such/program",))
    with pytest.raises(Unavailable, match="cannot run /no/such/program: No such file or directory"), supervisor:
        pass


def test_one_that_is_not_ready_in_time(supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_SECONDS", 0.2)
    with pytest.raises(Unavailable, match=r"function 0 .* was not ready within 0\.2 s"), supervise(WAIT):
        pass


def test_a_grandchild_that_keeps_stdout_keeps_nobody_and_is_ended(
    supervise: MakeSupervisor, died: list[tuple[int, int]], tmp_path: Path
) -> None:
    left = tmp_path / "grandchild"
    code = READY + (
        "import subprocess, pathlib, sys\n"
        "child = subprocess.Popen(['sleep', '999'])\n"
        f"pathlib.Path({str(left)!r}).write_text(str(child.pid))\n"
        'print(\'{"event": "end", "all": "last"}\', flush=True)\n'
    )
    with supervise(code, GOOD) as supervisor:
        step_until(supervisor, lambda: died)
        assert died == [(0, 0)]
        grandchild = os.pidfd_open(int(left.read_text()))
        assert select.select([grandchild], [], [], 30)[0]
        os.close(grandchild)
        supervisor.stop()
        first, second = supervisor.run()
        assert (first["report"]["all"], second["report"]["all"]) == ("last", "done")


def test_a_stopped_one_is_woken_to_end(supervise: MakeSupervisor) -> None:
    with supervise(GOOD, GOOD) as supervisor:
        os.kill(supervisor.children[1].pid, signal.SIGSTOP)
        supervisor.stop()
        assert [report["status"] for report in supervisor.run()] == [0, 0]


def test_one_that_does_not_end_is_killed(
    supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "END_SECONDS", 0.3)
    with supervise(GOOD.replace(WAIT, "signal.sigwait({signal.SIGURG})\n"), GOOD) as supervisor:
        supervisor.stop()
        assert [report["status"] for report in supervisor.run()] == [-signal.SIGKILL, 0]


def test_one_that_asks_for_no_window_gets_none(supervise: MakeSupervisor) -> None:
    """Nonsense to the keeper is answered with an error; one that does not read the answers is talked to no more."""
    ask = (
        "import socket, sys\n"
        "fd = next(word for word in sys.argv if word.startswith('--slot-fd=')).split('=')[1]\n"
        "channel = socket.socket(fileno=int(fd))\n"
        "channel.setblocking(False)\n"
        "try:\n"
        "    for _ in range(9999): channel.send(b'nonsense')\n"
        "except OSError: pass\n"
    )
    with supervise(ask + GOOD, GOOD, share=True) as supervisor:
        supervisor.stop()
        assert [report["status"] for report in supervisor.run()] == [0, 0]


def test_a_program_gets_its_options_and_those_of_the_slot(tmp_path: Path, supervise: MakeSupervisor) -> None:
    show = "import json, sys; print(json.dumps({'event': 'end', 'words': sys.argv[1:]}), flush=True)\n"
    supervisor = supervise(GOOD.replace(END, show), share=True, poll=True)
    function = supervisor.slot.functions[0]
    object.__setattr__(function, "options", {"sides": 8, "loaded": True, "quiet": False, "name": "-x"})
    with supervisor:
        supervisor.stop()
        (report,) = supervisor.run()
    words = report["report"]["words"]
    fixed = [word for word in words if not word.startswith("--slot-fd=")]
    assert len(words) == len(fixed) + 1
    assert fixed == [
        "--json", "--pool=16777216", f"--socket-path={tmp_path / '0.sock'}", "--profile=swiotlb", "--policy=required",
        "--poll", "--pool-owner=self", "--pool-users=1", "--sides=8", "--loaded", "--name=-x",
    ]  # fmt: skip


def test_a_signal_to_one_that_has_ended_is_nothing(supervise: MakeSupervisor, died: list[tuple[int, int]]) -> None:
    with supervise(READY, GOOD) as supervisor:
        step_until(supervisor, lambda: died)
        child: Child = supervisor.children[0]
        child.signal(signal.SIGUSR1)
        child.kill()
        child.ask_to_end()


@given(st.lists(st.binary(max_size=30).map(lambda piece: piece.replace(b"a", b"\n")), max_size=20))
def test_lines_come_out_as_they_went_in(pieces: list[bytes]) -> None:
    lines = Lines()
    found = [line for piece in pieces for line in lines.feed(piece)]
    assert found == b"".join(pieces).split(b"\n")[:-1]


def test_lines_that_are_too_long_are_left_out() -> None:
    lines = Lines()
    assert lines.feed(b"x" * LINE_BYTES) == []
    assert lines.feed(b"x\none\n" + b"y" * (LINE_BYTES + 1)) == [b"one"]
    assert lines.feed(b"y" * LINE_BYTES) == []
    assert lines.feed(b"\ntwo\n" + b"z" * (LINE_BYTES + 1) + b"\nthree\n") == [b"two", b"three"]


def test_a_wakeup_for_nothing_and_a_pipe_that_fails(supervise: MakeSupervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> bytes:
        raise OSError(5, "Input/output error")

    with supervise(GOOD) as supervisor:
        child = supervisor.children[0]
        assert child.listen()
        with monkeypatch.context() as patched:
            patched.setattr(os, "read", fail)
            assert not child.listen()


def test_what_a_process_says_last_is_taken_to_the_end_and_not_for_ever(
    supervise: MakeSupervisor, died: list[tuple[int, int]]
) -> None:
    flood = READY + "import sys\nsys.stdout.write('x\\n' * 30000)\nsys.stdout.flush()\n" + END
    with supervise(flood, GOOD) as supervisor:
        step_until(supervisor, lambda: died)
        assert supervisor.children[0].end == {"event": "end", "all": "done"}
