"""The window: bounds, seals, and memory that both ends see."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodma.errors import OutOfWindow, UsageError
from nodma.window import Window

SIZE = 65536


def test_both_ends_see_the_same_bytes() -> None:
    with Window.create(SIZE) as device, Window.adopt(os.dup(device.fd), SIZE) as driver:
        driver.view(100, 5)[:] = b"hello"
        assert device.view(100, 5).tobytes() == b"hello"
        device.words("H", 200, 4)[3] = 0xBEEF
        assert driver.words("H", 206, 1)[0] == 0xBEEF


@given(st.integers(-(2**65), 2**65), st.integers(-(2**65), 2**65))
def test_a_view_lies_inside_or_is_refused(offset: int, length: int) -> None:
    with Window.create(SIZE) as window:
        if offset >= 0 and length >= 0 and offset + length <= SIZE:
            assert len(window.view(offset, length)) == length
        else:
            with pytest.raises(OutOfWindow):
                window.view(offset, length)


@given(st.sampled_from("BHIQ"), st.integers(0, SIZE), st.integers(0, SIZE))
def test_words_lie_inside_or_are_refused(word: str, offset: int, count: int) -> None:
    width = {"B": 1, "H": 2, "I": 4, "Q": 8}[word]
    with Window.create(SIZE) as window:
        if offset + width * count <= SIZE:
            assert len(window.words(word, offset, count)) == count  # type: ignore[arg-type]
        else:
            with pytest.raises(OutOfWindow):
                window.words(word, offset, count)  # type: ignore[arg-type]


def test_a_window_has_a_name_to_be_seen_by() -> None:
    with Window.create(SIZE) as window:
        assert os.readlink(f"/proc/self/fd/{window.fd}") == "/memfd:nodma-window (deleted)"  # noqa: PTH115


def test_the_last_bytes_are_the_windows_and_the_next_are_not() -> None:
    with Window.create(SIZE) as window:
        assert len(window.view(0, SIZE)) == SIZE
        assert len(window.view(SIZE - 1, 1)) == 1
        assert len(window.view(SIZE, 0)) == 0
        assert len(window.words("Q", SIZE - 8, 1)) == 1
        for offset, length in ((0, SIZE + 1), (SIZE, 1), (SIZE - 1, 2), (-1, 1), (0, -1), (SIZE + 1, 0), (2**64, 1)):
            with pytest.raises(OutOfWindow):
                window.view(offset, length)


def test_a_window_may_lie_somewhere_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b"0" * 4096 + b"1" * 4096 + b"2" * 100)
    with Window.adopt(os.open(path, os.O_RDWR), 4096, offset=4096) as window:
        assert window.view(0, 4096).tobytes() == b"1" * 4096
    with pytest.raises(UsageError, match="8292 bytes"):
        Window.adopt(os.open(path, os.O_RDWR), 4096, offset=8192)


def test_nobody_can_resize_the_memory() -> None:
    with Window.create(SIZE) as window:
        assert window.sealed
        for size in (0, 2 * SIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(window.fd, size)


def test_a_file_as_a_window_is_not_sealed(tmp_path: Path) -> None:
    path = tmp_path / "resource2"
    path.write_bytes(bytes(SIZE))
    with Window.adopt(os.open(path, os.O_RDWR), SIZE) as window:
        assert not window.sealed


def test_memory_that_is_too_short_is_refused_and_its_descriptor_closed() -> None:
    fd = os.memfd_create("short")
    os.ftruncate(fd, SIZE)
    with pytest.raises(UsageError, match="has 65536 bytes, not 131072"):
        Window.adopt(fd, 2 * SIZE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_closing_twice_and_with_a_view_held_is_harmless() -> None:
    window = Window.create(SIZE)
    view = window.view(0, 8)
    window.close()
    window.close()
    assert window.fd == -1, "what was its number may be another's now"
    view[:] = b"8 bytes!"  # the mapping lives as long as the last view
    assert view.tobytes() == b"8 bytes!"


def test_the_window_is_left_out_of_core_dumps() -> None:
    with Window.create(SIZE) as window:
        inode = os.fstat(window.fd).st_ino
        _, found, rest = Path("/proc/self/smaps").read_text().partition(f" {inode} ")
        assert found
        flags = re.search(r"^VmFlags: (.*)$", rest, re.MULTILINE)
        assert flags
        assert "dd" in flags[1].split()
