"""``nodma serve --slot`` and a slot's file, as a user starts them, ends them, and gets them wrong."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodma.driver import BlockDisk, open_disk, open_slot
from nodma.procfs import ProcessView

NODMA = [sys.executable, "-m", "nodma", "serve"]
PAIR = ["blk,image=a.img,socket=a.sock", "blk,image=b.img,socket=b.sock,serial=second"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("a.img", "b.img"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    return tmp_path


@contextmanager
def serving(place: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([*NODMA, *arguments, "--json"], cwd=place, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout
            yield process, json.loads(process.stdout.readline())
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """What it says after SIGTERM: objects, and text on stderr."""
    process.terminate()
    out, said = process.communicate(timeout=30)
    return [json.loads(line) for line in out.splitlines()], said


def children(pid: int) -> dict[str, int]:
    """The processes of the functions, by socket."""
    found = {}
    for child in (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split():
        words = (Path("/proc") / child / "cmdline").read_bytes().decode().split("\0")
        found[words[words.index("--socket-path") + 1]] = int(child)
    return found


def refused(place: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([*NODMA, *arguments], cwd=place, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize("processes", ["each", "one"])
def test_a_slot_is_served_and_ended(place: Path, processes: str) -> None:
    with serving(place, "--slot", "--share", "--processes", processes, *PAIR) as (process, ready):
        assert [function["role"] for function in ready["functions"]] == ["owner", "sharer"]
        devices = [json.loads(word) for word in ready["qemu"][1::2]]
        assert [device["addr"] for device in devices] == ["5.0", "5.1"]
        assert all(device["multifunction"] is True for device in devices)
        with open_slot([place / "a.sock", place / "b.sock"]) as slot:
            disks = [BlockDisk(slot.bus(number)) for number in slot.functions]
            disks[0].pwrite(b"first", 0)
            disks[1].pwrite(b"other", 0)
            assert disks[1].serial == "second"
        (end,), said = ended(process)
        assert process.returncode == 0
    assert "functions 0, 1 share one pool: each can read and change the data of the others" in said
    assert [function["status"] for function in end["functions"]] == [0, 0]
    assert [function["report"]["device"]["writes"] for function in end["functions"]] == [1, 1]
    assert (place / "a.img").read_bytes()[:5] + (place / "b.img").read_bytes()[:5] == b"firstother"
    assert not (place / "a.sock").exists()
    assert not (place / "b.sock").exists()


def test_a_file_says_the_same_for_people(place: Path) -> None:
    (place / "slot.toml").write_text(
        'share = true\npool = "1M"\n'
        '[[function]]\nsocket = "a.sock"\nimage = "a.img"\n[[function]]\nsocket = "b.sock"\nimage = "b.img"\n'
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([*NODMA, "slot.toml"], cwd=place, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(3)]
        process.terminate()
        process.communicate(timeout=30)
    assert lines[0] == "function 0: a.img (1M) on a.sock, a pool of 1M, for others too\n"
    assert lines[1] == "function 1: b.img (1M) on b.sock, in the pool of function 0\n"
    assert lines[2].startswith("ready, attach: -device '{")
    assert process.returncode == 0


def test_each_process_holds_the_one_window_and_no_other_memory(place: Path) -> None:
    with serving(place, "--slot", "--share", "--pool", "2M", *PAIR) as (process, _):
        views = [ProcessView(pid) for pid in children(process.pid).values()]
        windows = [[mapped for mapped in view.maps() if mapped.writable_shared] for view in views]
        assert [[mapped.size for mapped in mine] for mine in windows] == [[2 << 20], [2 << 20]]
        assert windows[0][0].inode == windows[1][0].inode
        for view in views:
            shared = {held.inode for held in view.descriptors() if "memfd" in held.target}
            assert shared == {windows[0][0].inode}
        ended(process)


def test_functions_without_a_shared_pool_have_windows_of_their_own(place: Path) -> None:
    with serving(place, "--slot", "--profile", "dmb", *PAIR) as (process, ready):
        assert [function["role"] for function in ready["functions"]] == ["private", "private"]
        for name in ("a", "b"):
            with open_disk(place / f"{name}.sock") as disk:
                assert disk.device.profile.name == "dmb"
                disk.pread(512, 0)
        _, said = ended(process)
        assert said == ""


@pytest.mark.parametrize("victim", ["a.sock", "b.sock"])
def test_one_that_dies_takes_nobody_along_and_is_reported(place: Path, victim: str) -> None:
    with serving(place, "--slot", "--share", *PAIR) as (process, _):
        with open_slot([place / "a.sock", place / "b.sock"]) as slot:
            disks = dict(zip(("a.sock", "b.sock"), (BlockDisk(slot.bus(n)) for n in slot.functions), strict=True))
            survivor = disks["b.sock" if victim == "a.sock" else "a.sock"]
            survivor.pwrite(b"before", 0)
            os.kill(children(process.pid)[victim], signal.SIGKILL)
            assert process.stdout
            died = json.loads(process.stdout.readline())
            assert (died["event"], died["status"]) == ("died", -signal.SIGKILL)
            for _ in range(50):
                survivor.pwrite(b"after!", 512)
            assert survivor.pread(518, 0)[512:] == b"after!"
        (end,), said = ended(process)
    assert process.returncode == 1
    assert f"({victim}) ended with SIGKILL; the others go on" in said
    assert sorted(function["status"] for function in end["functions"]) == [-signal.SIGKILL, 0]


def test_a_supervisor_that_is_killed_leaves_no_process_behind(place: Path) -> None:
    with serving(place, "--slot", "--share", *PAIR) as (process, _):
        watched = [os.pidfd_open(pid) for pid in children(process.pid).values()]
        process.kill()
        for fd in watched:
            assert select.select([fd], [], [], 30)[0]
            os.close(fd)


def test_the_owners_client_takes_the_window_along(place: Path) -> None:
    """Nothing of what one client left reaches the next, through whichever function."""
    with serving(place, "--slot", "--share", *PAIR) as (process, _):
        for _ in range(2):
            with open_slot([place / "a.sock", place / "b.sock"]) as slot:
                owner, sharer = (BlockDisk(slot.bus(number)) for number in slot.functions)
                window = owner.device.window
                assert b"secret" not in bytes(window.bytes)
                window.view(window.size - 64, 6)[:] = b"secret"
                assert sharer.pread(512, 0) == bytes(512)
                del window
        ended(process)


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["--slot"], 2, "give either functions or --config FILE"),
        (["missing.toml"], 1, "missing.toml cannot be read"),
        (["--slot", "blk,socket=a.sock"], 2, "function 0 has no image"),
        (["--slot", "--share", "--profile", "dmb", *PAIR], 2, "the profile dmb cannot share a pool"),
        (
            ["--slot", "--policy", "hopeful", "--profile", "dmb", *PAIR],
            1,
            "hopeful is not to be had with the profile dmb",
        ),
        (["--slot", "--share", PAIR[0], PAIR[1] + ",role=owner"], 2, "functions 0 and 1 both claim to own"),
        (["--slot", PAIR[0], PAIR[1] + ",role=sharer"], 2, "function 1 uses a shared pool, and no function owns it"),
        (["--slot", PAIR[1], "blk,image=none.img,socket=a.sock"], 1, "function 1 .a.sock. did not start"),
        (["--slot", "--processes", "one", "blk,image=none.img,socket=a.sock"], 1, "none.img"),
        (["--slot", "blk,image=a.img,socket=a.sock,queues=none"], 1, "none"),
    ],
)
def test_what_cannot_be_served_is_said(place: Path, arguments: list[str], status: int, why: str) -> None:
    got, said = refused(place, *arguments)
    assert got == status
    assert re.search(why, said)
    assert not list(place.glob("*.sock"))
