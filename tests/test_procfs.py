"""What can be seen of a process from outside."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nodma.errors import Unavailable
from nodma.procfs import PAGE, Descriptor, FileIdentity, MappedRange, ProcessView, Ring, holders
from nodma.procfs.memory import Pages
from nodma.procfs.records import parse_range, parse_ring
from nodma.window import Window


def test_a_mapping_a_descriptor_and_the_bytes_in_it_are_found() -> None:
    canary = secrets.token_bytes(32)
    view = ProcessView(os.getpid())
    with Window.create(65536) as window:
        file = FileIdentity.of(window.fd)
        (mapped,) = [mapped for mapped in view.maps() if mapped.file == file and mapped.writable_shared]
        assert (mapped.size, mapped.permissions) == (65536, "rw-s")
        assert file in {item.file for item in view.descriptors()}
    assert file not in {item.file for item in view.descriptors()}
    assert view.search(canary).found == {canary}
    assert view.resident() > view.resident_shared() >= 0


def test_a_canary_is_found_in_a_child_only_where_it_is() -> None:
    canary = secrets.token_hex(16)
    program = (
        "import sys; kept = sys.stdin.readline().strip() if sys.argv[1] == 'keep' else 0; print(1, flush=True); input()"
    )
    for keep in ("keep", "not"):
        with subprocess.Popen(
            [sys.executable, "-c", program, keep], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdin
            assert child.stdout
            if keep == "keep":
                child.stdin.write(canary + "\n")
                child.stdin.flush()
            child.stdout.readline()
            found = ProcessView(child.pid).search(canary.encode(), b"nowhere at all").found
            assert found == ({canary.encode()} if keep == "keep" else set())
            child.stdin.write("\n")


def test_a_process_that_is_gone_is_a_clear_error() -> None:
    for look in (ProcessView.maps, ProcessView.descriptors, ProcessView.resident):
        with pytest.raises(Unavailable, match="process 999999999 cannot be inspected"):
            look(ProcessView(999999999))
    with pytest.raises(Unavailable, match="cannot be inspected"):
        ProcessView(999999999).search(b"x")


def test_lines_of_maps() -> None:
    line = b"7f00-9f00 rw-s 00000000 08:1f 42                         /a b/\xff\x1b[2J"
    assert parse_range(line) == MappedRange(
        0x7F00, 0x9F00, "rw-s", FileIdentity(os.makedev(8, 31), 42), r"/a b/\\xff\x1b[2J"
    )
    assert parse_range(b"7f00-9f00 ---p 00000000 00:00 0 ").name == ""
    with pytest.raises(Unavailable, match="cannot read: 7f00 something new"):
        parse_range(b"7f00 something new")


RING = """\
pos:\t0
SqThread:\t-1
SQEs:\t1
    0: opcode:READ, fd:3, flags:0
UserFiles:\t2
    0: /a\\040b
    1: <none>
UserBufs:\t1
    0: 0x7f8312345000/65536
PollList:
  op=6, task_works=0
"""


def test_what_an_io_uring_has_registered() -> None:
    assert parse_ring(RING) == Ring(True, ("/a b",), ((0x7F8312345000, 65536),))
    assert parse_ring("UserFiles:\t0\nUserBufs:\t0\n") == Ring(True, (), ())
    for busy in ("pos:\t0\n", "UserFiles:\t2\nUserBufs:\t0\n", RING.replace("    0: 0x7f8312345000/65536\n", "")):
        assert not parse_ring(busy).listed
    assert not parse_ring(RING.replace("0x7f8312345000/65536", "in another way")).listed


def test_pages_that_hold_something() -> None:
    """Present, swapped out; a guard page looks as if it were swapped out."""
    nothing, present, swapped, guard = 0, 1 << 63, 1 << 62, 1 << 62 | 1 << 58
    pagemap = os.memfd_create("pagemap")
    try:
        os.write(pagemap, b"".join(n.to_bytes(8, sys.byteorder) for n in (nothing, present, present, guard, swapped)))
        mapped = MappedRange(0, 5 * PAGE, "rw-p", FileIdentity(0, 0), "")
        assert list(Pages(pagemap, True).used(mapped)) == [(PAGE, 3 * PAGE), (4 * PAGE, 5 * PAGE)]
        assert list(Pages(pagemap, False).used(mapped)) == [(PAGE, 3 * PAGE)]
        assert [Pages(pagemap, True).holds(PAGE * page) for page in range(5)] == [False, True, True, False, True]
    finally:
        os.close(pagemap)


def test_a_search_is_not_stopped_by_what_cannot_be_read() -> None:
    """A file that was truncated under its mapping: an error, and nothing behind it."""
    program = """
import mmap, os
fd = os.memfd_create("file")
os.ftruncate(fd, 65536)
kept = mmap.mmap(fd, 65536)
os.ftruncate(fd, 4096)
after = bytearray(b"a canary" * 3)
print(flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        search = ProcessView(child.pid).search(b"a canary" * 3)
        child.communicate(b"\n", timeout=20)
    assert search.found
    assert [(part.end - part.start, part.name, part.present) for part in search.unread] == [
        (65536 - PAGE, "/memfd:file (deleted)", False)
    ]


def test_who_else_holds_a_file() -> None:
    with Window.create(65536) as window:
        wanted = frozenset({FileIdentity.of(window.fd)})
        for program, how in (
            ("print(flush=True); input()", "has it open"),
            (
                "import mmap, os; fd = FD; kept = mmap.mmap(fd, 65536); os.close(fd); print(flush=True); input()",
                "maps it",
            ),
        ):
            with subprocess.Popen(
                [sys.executable, "-c", program.replace("FD", str(window.fd))],
                pass_fds=[window.fd],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as child:
                assert child.stdout
                child.stdout.readline()
                assert holders(wanted, frozenset({os.getpid()})) == ([f"process {child.pid} {how}"], [])
                assert holders(wanted, frozenset({os.getpid(), child.pid})) == ([], [])
                child.communicate(b"\n", timeout=20)


def test_no_file_system_is_asked_about_a_file_that_cannot_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some other process may have a file open of a file system that hangs."""

    def hang(path: Path) -> None:
        raise AssertionError(f"{path} was asked for")

    with Window.create(65536) as window:
        wanted = frozenset({FileIdentity(FileIdentity.of(window.fd).device, 1 << 62)})
        monkeypatch.setattr(Path, "stat", hang)
        assert holders(wanted, frozenset()) == ([], [])


@pytest.mark.parametrize("tells", [True, False], ids=["kcmp", "no kcmp"])
def test_descriptors_that_threads_have_in_common_are_listed_once(monkeypatch: pytest.MonkeyPatch, tells: bool) -> None:
    program = """
import threading
for _ in range(50):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
input()
"""
    read: list[int] = []
    real = ProcessView._descriptor

    def count(view: ProcessView, task: int, fd: int) -> Descriptor | None:
        read.append(task)
        return real(view, task, fd)

    monkeypatch.setattr(ProcessView, "_descriptor", count)
    if not tells:
        monkeypatch.setattr("nodma.procfs.process._KCMP", -1)
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        found = [item.fd for item in ProcessView(child.pid).descriptors()]
        child.communicate(b"\n", timeout=20)
    assert found == [0, 1, 2]
    assert len(set(read)) == (1 if tells else 51)


def test_processes_that_hang_are_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    hanging = {os.getpid()}

    def how_held(pid: int, files: object) -> str:
        if pid in hanging:
            released.wait(60)
        return "maps it" if pid == 1 else ""

    monkeypatch.setattr("nodma.procfs.process._how_held", how_held)
    monkeypatch.setattr("nodma.procfs.process._HANG_SECONDS", 0.05)
    try:
        found, unanswered = holders(frozenset(), frozenset(), 1.0)
        assert (found, set(unanswered)) == (["process 1 maps it"], hanging)
    finally:
        released.set()
