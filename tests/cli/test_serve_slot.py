"""``nodma serve --slot`` and a slot's file, as a user starts them, ends them, and gets them wrong."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nodma.driver import BlockDisk, open_disk, open_slot
from nodma.procfs import ProcessView
from nodma.spec.virtio_blk import BlkConfig

NODMA = [sys.executable, "-m", "nodma", "serve"]
PAIR = ["blk,image=a.img,socket=a.sock", "blk,image=b.img,socket=b.sock,serial=second"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("a.img", "b.img"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    return tmp_path


class Child(subprocess.Popen[str]):
    """A process that does not outlive its test, however that ends."""

    def __exit__(self, *error: Any) -> None:
        self.kill()
        super().__exit__(*error)


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
        (path,) = (word.removeprefix("--socket-path=") for word in words if word.startswith("--socket-path="))
        found[path] = int(child)
    return found


def refused(place: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([*NODMA, *arguments], cwd=place, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize("processes", ["each", "one"])
def test_a_slot_is_served_and_ended(place: Path, processes: str) -> None:
    with serving(place, "--slot", "--share", "--processes", processes, *PAIR) as (process, ready):
        assert ready["format"] == 1
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
    assert end["format"] == 1
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
    with Child([*NODMA, "slot.toml"], cwd=place, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(3)]
        process.terminate()
        process.communicate(timeout=30)
    assert lines[0] == "function 0: a.img (1M) on a.sock, a pool of 1M, for others too\n"
    assert lines[1] == "function 1: b.img (1M) on b.sock, in the pool of function 0\n"
    assert lines[2].startswith("ready, attach: -device '{")
    assert process.returncode == 0


def test_each_process_holds_the_one_window_and_no_other_memory(place: Path) -> None:
    with serving(place, "--slot", "--share", "--auditable", "--pool", "2M", *PAIR) as (process, _):
        views = [ProcessView(pid) for pid in children(process.pid).values()]
        windows = [[mapped for mapped in view.maps() if mapped.writable_shared] for view in views]
        assert [[mapped.size for mapped in mine] for mine in windows] == [[2 << 20], [2 << 20]]
        assert windows[0][0].file == windows[1][0].file
        for view in views:
            shared = {held.file for held in view.descriptors() if "memfd" in held.target}
            assert shared == {windows[0][0].file}
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
        (["missing.toml"], 1, "cannot read missing.toml"),
        (["--slot", "blk,socket=a.sock"], 2, "function 0: no image: a blk device needs one"),
        (["--slot", "--share", "--profile", "dmb", *PAIR], 2, "profile dmb cannot share a pool"),
        (
            ["--slot", "--policy", "hopeful", "--profile", "dmb", *PAIR],
            2,
            "policy hopeful is not available with profile dmb",
        ),
        (["--slot", "--share", PAIR[0], PAIR[1] + ",role=owner"], 2, "functions 0 and 1 both claim to own"),
        (["--slot", PAIR[0], PAIR[1] + ",role=sharer"], 2, "function 1 uses a shared pool, but no function owns it"),
        (["--slot", PAIR[1], "blk,image=none.img,socket=a.sock"], 1, "function 1 .a.sock. did not start"),
        (["--slot", "--processes", "one", "blk,image=none.img,socket=a.sock"], 1, "none.img"),
        (["--slot", "blk,image=a.img,socket=a.sock,queues=none"], 2, "function 0: .*'--queues': 'none' is not"),
        (["--slot", "blk,image=a.img,socket=a\udcff.sock"], 2, r"the path a\\udcff.sock is not UTF-8"),
        (["--slot", "--pci-slot", "32", *PAIR], 2, "invalid slot 32: a bus has slots 0 to 31"),
        (["nul.toml"], 2, "nul.toml: function 0: socket: invalid path"),
        (["program.toml"], 1, "function 0 .p.sock.: cannot run /no/such/program: No such file"),
    ],
)
def test_what_cannot_be_served_is_said(place: Path, arguments: list[str], status: int, why: str) -> None:
    (place / "nul.toml").write_text('[[function]]\nimage = "a.img"\nsocket = "a\\u0000"\n')
    (place / "program.toml").write_text('[[function]]\nprogram = ["/no/such/program"]\nsocket = "p.sock"\n')
    got, said = refused(place, *arguments)
    assert got == status
    assert re.search(why, said)
    assert not list(place.glob("*.sock"))


def test_a_comma_in_a_name_is_written_twice(place: Path) -> None:
    (place / "a,b.img").write_bytes(bytes(1 << 20))
    with serving(place, "--slot", "blk,image=a,,b.img,socket=a,,b.sock") as (process, ready):
        assert [function["socket"] for function in ready["functions"]] == ["a,b.sock"]
        assert json.loads(ready["qemu"][1])["socket"]["path"] == "a,b.sock"
        with open_disk(place / "a,b.sock") as disk:
            assert disk.size == 1 << 20
        ended(process)


@pytest.mark.parametrize("processes", ["each", "one"])
def test_sockets_of_a_slot_are_for_a_group(place: Path, processes: str) -> None:
    with serving(place, "--slot", "--processes", processes, "--socket-group", str(os.getgid()), *PAIR) as (process, _):
        for name in ("a.sock", "b.sock"):
            assert stat.S_IMODE((place / name).stat().st_mode) == 0o660
        ended(process)


@pytest.mark.parametrize("processes", ["each", "one"])
def test_systemd_hands_over_the_sockets_of_a_slot(place: Path, processes: str) -> None:
    launch = (
        "import os, socket, sys\n"
        "for fd, path in ((3, 'b.sock'), (4, 'a.sock')):\n"
        "    made = socket.socket(socket.AF_UNIX); made.bind(os.path.abspath(path)); made.listen()\n"
        "    os.dup2(made.detach(), fd + 10); os.dup2(fd + 10, fd); os.set_inheritable(fd, True)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'nodma', 'serve', *sys.argv[1:]])\n"
    )
    command = [sys.executable, "-c", launch, "--slot", "--processes", processes, "--json", *PAIR]
    with Child(command, cwd=place, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["event"] == "ready"
        with open_disk(place / "b.sock") as disk:
            assert disk.serial == "second"
        with open_disk(place / "a.sock") as disk:
            assert disk.serial != "second"
        process.terminate()
        assert process.wait(30) == 0
    assert (place / "a.sock").exists()  # systemd's, to use again


def test_the_owner_outlives_a_supervisor_that_is_stopped(place: Path) -> None:
    """Without the keeper there is no fresh window for the owner's next client: it waits, and neither ends."""
    with serving(place, "--slot", "--share", *PAIR) as (process, _):
        pids = children(process.pid)
        with open_disk(place / "a.sock") as disk:
            disk.device.window.view(1 << 20, 6)[:] = b"secret"
            os.kill(process.pid, signal.SIGSTOP)
            assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert process.stderr
        while "did not answer" not in process.stderr.readline():  # the owner asks for another window until it gets one
            pass
        os.kill(process.pid, signal.SIGCONT)
        with open_disk(place / "a.sock") as disk:
            assert b"secret" not in bytes(disk.device.window.bytes)
        assert children(process.pid) == pids
        (end,), _ = ended(process)
        assert [function["status"] for function in end["functions"]] == [0, 0]


@pytest.mark.parametrize("processes", ["each", "one"])
def test_images_that_have_grown_are_seen_at_sigusr1(place: Path, processes: str) -> None:
    with serving(place, "--slot", "--processes", processes, *PAIR) as (process, _):
        os.truncate(place / "b.img", 3 << 20)
        process.send_signal(signal.SIGUSR1)
        with open_disk(place / "b.sock") as disk:
            while disk.device.device_config(BlkConfig).capacity != 3 << 11:
                disk.device.check()
        (end,), said = ended(process)
        assert [function["status"] for function in end["functions"]] == [0, 0]
        assert said == ""


def test_a_second_signal_ends_processes_that_hang(place: Path) -> None:
    hang = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        'print(\'{"event": "ready", "device": "it"}\', flush=True)\n'
        "while True: signal.pause()"
    )
    program = json.dumps([sys.executable, "-c", hang])
    (place / "slot.toml").write_text(
        f'[[function]]\nsocket = "a.sock"\nimage = "a.img"\n[[function]]\nsocket = "p.sock"\nprogram = {program}\n'
    )
    with serving(place, "slot.toml") as (process, _):
        functions = (Path("/proc") / str(process.pid) / "task" / str(process.pid) / "children").read_text().split()
        watched = [os.pidfd_open(int(pid)) for pid in functions]
        assert len(watched) == 2
        while process.poll() is None:  # within a second of the first it counts as the same
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        assert process.stderr
        said = process.stderr.read()
        for fd in watched:
            assert select.select([fd], [], [], 30)[0]
            os.close(fd)
    assert process.returncode == 1
    assert "ended by force, because SIGTERM arrived a second time; still running: function 1 (p.sock)" in said
    assert not (place / "a.sock").exists()
