"""What systemd hands over, and what it is told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nodma.hosting.systemd import Notifier, take_listening_fds


@pytest.mark.parametrize(
    ("pid", "count", "expected"),
    [(str(os.getpid()), "2", [3, 4]), ("1", "2", []), (str(os.getpid()), "x", []), (str(os.getpid()), "", [])],
)
def test_descriptors_are_taken_once_and_if_they_are_for_us(
    monkeypatch: pytest.MonkeyPatch, pid: str, count: str, expected: list[int]
) -> None:
    monkeypatch.setattr(os, "set_inheritable", lambda *_: None)  # pytest's own descriptors have these numbers here
    monkeypatch.setenv("LISTEN_PID", pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_FDNAMES", "a:b")
    assert take_listening_fds() == expected
    assert take_listening_fds() == []
    assert not [name for name in os.environ if name.startswith("LISTEN_")]


@pytest.mark.parametrize("abstract", [False, True])
def test_it_is_told_of_ready_status_and_stopping(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool
) -> None:
    path = f"@nodma-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + path[1:] if abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notifier = Notifier()
        assert "NOTIFY_SOCKET" not in os.environ  # children are not the service
        notifier.ready("two\nlines")
        notifier.stopping()
        assert systemd.recv(999) == b"READY=1\nSTATUS=two lines"
        assert systemd.recv(999).startswith(b"STOPPING=1\nSTATUS=")


def test_nobody_to_be_told_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("x")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Notifier().ready("x")
