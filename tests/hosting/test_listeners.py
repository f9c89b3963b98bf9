"""Where a process listens, and who may connect there."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from nodma.errors import Unavailable, UsageError
from nodma.hosting import listeners as module
from nodma.hosting.listeners import Listeners
from nodma.vfio_user.listener import Listener


def listening(path: Path) -> int:
    """A socket as systemd makes it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        return sock.detach()


@pytest.fixture
def hand_over(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *fds: monkeypatch.setattr(module, "take_listening_fds", lambda: list(fds))


def closed(listener: Listener) -> Listener:
    listener.remove()
    listener.socket.close()
    return listener


@pytest.mark.parametrize(
    ("mode", "group", "expected"), [(None, None, 0o600), (0o666, None, 0o666), (None, "0", 0o660), (0o620, "0", 0o620)]
)
def test_permissions_of_a_new_socket(tmp_path: Path, mode: int | None, group: str | None, expected: int) -> None:
    path = tmp_path / "s"
    before = os.umask(0o022)
    try:
        listener = Listeners(mode, group).choose(path, None)()
    finally:
        os.umask(before)
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (expected, os.getgid() if group is None else 0)
    closed(listener)
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to any group")
def test_a_socket_is_given_to_a_group_before_anybody_can_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    chown = os.chown

    def connect_first(*arguments: object, **options: object) -> None:
        with socket.socket(socket.AF_UNIX) as early, pytest.raises(ConnectionRefusedError):
            early.connect(str(path))
        chown(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "chown", connect_first)
    closed(Listeners(None, "7").choose(path, None)())


def test_a_group_that_may_not_be_given_leaves_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(Unavailable, match="to group 7: Operation not permitted"):
        Listeners(None, "7").choose(tmp_path / "s", None)()
    assert not (tmp_path / "s").exists()


def test_a_group_that_does_not_exist() -> None:
    with pytest.raises(Unavailable, match="no group 'no-such-group' on this system"):
        Listeners(None, "no-such-group")


def test_a_socket_that_systemd_handed_over_is_used(tmp_path: Path, hand_over: Callable[..., None]) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    fds = [listening(path) for path in paths]
    hand_over(*fds)
    mine = Listeners()
    assert mine.handed_over(paths[1]) == fds[1]
    assert mine.handed_over(tmp_path / "c") is None
    with pytest.raises(UsageError, match="systemd handed over 2 sockets: name one by --socket-path"):
        mine.choose(None, None)
    assert closed(mine.choose(paths[0], None)()).path == str(paths[0])
    hand_over(fds[1])
    assert closed(Listeners().choose(None, None)()).path == str(paths[1])
    assert all(path.exists() for path in paths)  # they are systemd's to remove


def test_what_systemd_handed_over_by_mistake(tmp_path: Path, hand_over: Callable[..., None]) -> None:
    with (tmp_path / "file").open("wb") as file, socket.socket() as inet:
        hand_over(file.fileno())
        with pytest.raises(Unavailable, match="is not a socket"):
            Listeners()
        hand_over(inet.fileno())
        with pytest.raises(Unavailable, match="is not a UNIX socket with a path"):
            Listeners()


def test_it_must_be_said_where(hand_over: Callable[..., None]) -> None:
    hand_over()
    with pytest.raises(click.UsageError, match="give --socket-path PATH or --fd N: where to listen"):
        Listeners().choose(None, None)
    with pytest.raises(click.UsageError, match="not both"):
        Listeners().choose(Path("x"), 3)
