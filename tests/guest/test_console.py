"""What a guest says is kept, waited for by whole lines, and shown when something else happened."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodma.errors import GuestError
from nodma.guest.console import Console


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[Console, socket.socket]]:
    ours, theirs = socket.socketpair()
    console = Console(ours, tmp_path / "console.log")
    yield console, theirs
    theirs.close()
    console.close()


def test_what_is_waited_for_comes_in_order(ends: tuple[Console, socket.socket]) -> None:
    console, guest = ends
    guest.sendall(b"one 1\r\ntwo 2\r\none 3\r\n")
    assert console.expect(r"one (\d)", 5)[1] == "1"
    assert console.expect(r"one (\d)", 5)[1] == "3"


def test_half_a_line_is_not_looked_at(ends: tuple[Console, socket.socket]) -> None:
    console, guest = ends
    guest.sendall(b"STATUS 0x4")
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(console.expect(r"STATUS (0x\w+)", 10)[1]))
    waiting.start()
    guest.sendall(b"f\r\n")
    waiting.join(timeout=10)
    assert found == ["0x4f"]


def test_the_end_of_the_guest_ends_the_wait_with_its_last_lines(ends: tuple[Console, socket.socket]) -> None:
    console, guest = ends
    guest.sendall(b"Kernel panic - not syncing\r\n")
    guest.close()
    with pytest.raises(GuestError, match=r"(?s)the guest ended before 'ready'.*console.log.*Kernel panic"):
        console.expect("ready", 10)


def test_time_runs_out(ends: tuple[Console, socket.socket]) -> None:
    console, guest = ends
    guest.sendall(b"booting\n")
    console.expect("booting", 5)
    with pytest.raises(GuestError, match="passed before 'ready' was seen"):
        console.expect("ready", 0.01)


def test_the_log_has_all_of_it_and_lines_can_be_typed(ends: tuple[Console, socket.socket]) -> None:
    console, guest = ends
    console.send("go on")
    assert guest.recv(100) == b"go on\n"
    guest.sendall(b"a\r\nlast")
    guest.close()
    console.close()
    assert console.text == "a\nlast"
    assert console.log.read_bytes() == b"a\r\nlast"
