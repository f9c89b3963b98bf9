"""The socket that a server listens on."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from nodma.errors import UsageError
from nodma.vfio_user.listener import adopt_listener, make_listener


def test_the_socket_is_this_users_alone_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = make_listener(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listener.socket.close()
    listener.remove()
    listener.remove()
    assert not path.exists()


def test_a_socket_in_use_is_refused_and_a_dead_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = make_listener(path)
    with pytest.raises(UsageError, match="in use: another process listens there"):
        make_listener(path)
    first.socket.close()  # as when the process was killed
    second = make_listener(path)
    first.remove()  # it is not the first one's any more
    assert path.exists()
    second.socket.close()
    second.remove()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(UsageError, match="exists and is not a socket"):
        make_listener(path)
    assert path.read_text() == "data"


def test_paths_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="longer than 107 bytes"):
        make_listener(tmp_path / ("x" * 108))
    with pytest.raises(UsageError, match="cannot listen at"):
        make_listener(tmp_path / "missing" / "s")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot listen at .*/file/s: Not a directory"):
        make_listener(tmp_path / "file" / "s")


def test_a_socket_file_that_went_meanwhile_is_nothing_to_remove(tmp_path: Path) -> None:
    listener = make_listener(tmp_path / "s")
    listener.socket.close()
    (tmp_path / "s").unlink()
    listener.remove()


def test_a_group_that_the_socket_cannot_be_given_to_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: object, **more: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(UsageError, match=r"cannot give the socket .* to group 12345: Operation not permitted"):
        make_listener(tmp_path / "s", group=12345)
    assert not (tmp_path / "s").exists()


def test_an_inherited_listener_is_adopted(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        made.listen()
        listener = adopt_listener(os.dup(made.fileno()))
        assert listener.path == str(tmp_path / "s")
        assert not listener.socket.get_inheritable()
        listener.socket.close()
        listener.remove()  # not ours to remove
        assert (tmp_path / "s").exists()


def test_a_descriptor_that_is_no_listening_socket_is_refused() -> None:
    with pytest.raises(UsageError, match="descriptor 9999 is not a socket: Bad file descriptor"):
        adopt_listener(9999)
    read_end, write_end = os.pipe()
    with pytest.raises(UsageError, match="is not a socket"):
        adopt_listener(read_end)
    with socket.socket(socket.AF_UNIX) as plain, pytest.raises(UsageError, match="is not a listening UNIX stream"):
        adopt_listener(plain.fileno())
    os.close(read_end)
    os.close(write_end)
