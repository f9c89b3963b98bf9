"""The image of ``nodma serve blk``: who else has it, what format it has, how it grows, and a disk that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodma.driver import BlockDisk, open_disk
from tests.fuse import Fuse

NODMA = [sys.executable, "-m", "nodma"]
SECONDS = 30.0


@contextmanager
def serving(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A device process, or several, ready."""
    command = [*NODMA, "serve", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline()
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


def refused(*words: str | Path) -> str:
    """Be refused; return what was said."""
    done = subprocess.run(
        [*NODMA, "serve", *map(str, words)], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def test_an_image_is_served_once(tmp_path: Path, image: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with serving("blk", "-s", first, "--image", image):
        for more in ([], ["--read-only"]):
            said = refused("blk", "-s", second, "--image", image, *more)
            assert f"nodma: error: the image {image} is in use" in said
        with serving("blk", "-s", second, "--image", image, "--no-lock"), open_disk(second) as disk:
            assert disk.size == 1 << 20
    with serving("blk", "-s", first, "--image", image, "--read-only"):  # noqa: SIM117
        with serving("blk", "-s", second, "--image", image, "--read-only"), open_disk(second) as disk:
            assert disk.read_only


@pytest.mark.parametrize("processes", ["one", "each"])
def test_two_functions_of_a_slot_do_not_write_one_image(tmp_path: Path, image: Path, processes: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(image)
    for no_lock in (False, True):
        slot = tmp_path / "slot.toml"
        slot.write_text(
            f'processes = "{processes}"\n'
            f'[[function]]\nimage = "{image}"\nsocket = "{tmp_path}/a"\nno-lock = {str(no_lock).lower()}\n'
            f'[[function]]\nimage = "{link}"\nsocket = "{tmp_path}/b"\nno-lock = {str(no_lock).lower()}\n'
        )
        if no_lock:
            with serving(slot):
                pass
        else:
            said = refused(slot)
            names = (link,) if processes == "one" else (image, link)  # of two processes, either may come first
            assert any(f"the image {name} is in use" in said for name in names)


def test_a_format_that_is_not_raw_is_served_only_if_the_user_insists(tmp_path: Path) -> None:
    path, image = tmp_path / "s", tmp_path / "disk.qcow2"
    image.write_bytes((b"QFI\xfb\0\0\0\3").ljust(1 << 20, b"\0"))
    assert "is in the format qcow2, and only raw images are served" in refused("blk", "-s", path, "--image", image)
    with serving("blk", "-s", path, "--image", image, "--raw"), open_disk(path) as disk:
        assert disk.pread(4, 0) == b"QFI\xfb"


def test_the_block_size_and_a_serial_that_stays(tmp_path: Path, image: Path) -> None:
    path = tmp_path / "s"
    serials = []
    for block in ("512", "4096"):
        with serving("blk", "-s", path, "--image", image, "--block-size", block), open_disk(path) as disk:
            assert disk.config.blk_size == int(block)
            serials.append(disk.serial)
    assert serials[0] == serials[1] != ""
    slot = tmp_path / "slot.toml"
    slot.write_text(f'[[function]]\nimage = "{image}"\nsocket = "{path}"\nblock-size = 4096\nserial = "mine"\n')
    with serving(slot), open_disk(path) as disk:
        assert (disk.config.blk_size, disk.serial) == (4096, "mine")


@pytest.mark.parametrize("processes", [None, "one", "each"])
def test_sigusr1_makes_a_grown_image_a_larger_disk(tmp_path: Path, image: Path, processes: str | None) -> None:
    path = tmp_path / "s"
    words: list[str | Path] = ["blk", "-s", path, "--image", image]
    if processes:
        slot = tmp_path / "slot.toml"
        slot.write_text(f'processes = "{processes}"\n[[function]]\nimage = "{image}"\nsocket = "{path}"\n')
        words = [slot]
    with serving(*words) as process, open_disk(path) as disk:
        os.truncate(image, 3 << 20)
        assert disk.reload_size() == 1 << 20
        process.send_signal(signal.SIGUSR1)
        until(lambda: disk.reload_size() == 3 << 20)
        disk.pwrite(b"new", (3 << 20) - 512)
        os.truncate(image, 1 << 20)
        process.send_signal(signal.SIGUSR1)
        assert process.stderr
        line = process.stderr.readline()
        assert "has shrunk from 3145728 to 1048576 bytes" in line
        assert disk.reload_size() == 3 << 20
        with pytest.raises(OSError, match="I/O error"):
            disk.pwrite(b"x" * 512, 2 << 20)
    assert image.stat().st_size == 1 << 20


def read_until(process: subprocess.Popen[str], what: str) -> str:
    """Read the log up to a line that says ``what``; return the line."""
    assert process.stderr
    for line in process.stderr:
        if what in line:
            return line
    pytest.fail(f"not said: {what}")


def has_exited(process: subprocess.Popen[str]) -> bool:
    """Whether the process has exited, as far as it could."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Fuse]:
    """A file system of ours, with one file: a disk that hangs, or fails, when it is to."""
    mount = tmp_path / "fuse"
    mount.mkdir()
    try:
        made = Fuse(mount)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    yield made
    made.close()


def test_a_client_that_leaves_a_read_that_hangs_keeps_nobody_waiting(tmp_path: Path, fuse: Fuse) -> None:
    path = tmp_path / "s"
    with serving("blk", "-s", path, "--image", fuse.file) as process:
        with open_disk(path) as disk:
            assert disk.pread(512, 0) == bytes(512)
            fuse.hang("read")
            begin(disk)
            until(lambda: fuse.hanging)
            for _ in range(10):
                disk.device.device_config(type(disk.config))  # registers answer
            left = time.monotonic()
        fuse.answer_after(0.5)
        with open_disk(path) as disk:  # its reset ends when the disk has answered
            assert disk.pread(512, 0) == bytes(512)
        assert time.monotonic() - left < SECONDS
        process.terminate()
        assert process.wait(SECONDS) == 0


def begin(disk: BlockDisk) -> None:
    """Begin a read, and leave."""
    disk.submit_read(1 << 20, bytearray(4096))
    disk.kick()


def test_sigterm_ends_with_what_was_not_done_while_a_read_hangs(tmp_path: Path, fuse: Fuse) -> None:
    path = tmp_path / "s"
    with serving("blk", "-s", path, "--image", fuse.file) as process:
        with open_disk(path) as disk:
            fuse.hang("read")
            begin(disk)
            until(lambda: fuse.hanging)
        process.terminate()
        read_until(process, "requests0 are still under way: their disk does not answer")
        until(lambda: has_exited(process))  # but for the thread that Linux keeps until the disk has answered
        fuse.answer()
        assert process.wait(SECONDS) == 1


def test_a_second_sigterm_ends_what_a_sync_that_hangs_keeps(tmp_path: Path, fuse: Fuse) -> None:
    path = tmp_path / "s"
    with serving("blk", "-s", path, "--image", fuse.file) as process:
        with open_disk(path) as disk:
            disk.pwrite(b"x" * 4096, 0)
            fuse.hang("fsync")
        until(lambda: fuse.hanging)  # as the client has left
        process.terminate()
        until(lambda: not path.exists())

        def insist() -> bool:  # within a second of the first it is the same wish
            process.terminate()
            return has_exited(process)

        until(insist)
        assert "making what was written durable" in read_until(process, "ended by force")
        fuse.answer()
        assert process.wait(SECONDS) == 1


def test_a_sync_that_fails_when_a_client_leaves_fails_the_next_clients_flush(tmp_path: Path, fuse: Fuse) -> None:
    path = tmp_path / "s"
    with serving("blk", "-s", path, "--image", fuse.file) as process:
        fuse.fail("fsync")
        with open_disk(path) as disk:
            disk.pwrite(b"x" * 4096, 0)
        until(lambda: fuse.failed)
        fuse.answer()
        with open_disk(path) as disk, pytest.raises(OSError, match="I/O error"):
            disk.flush()
        process.terminate()
        assert "every flush fails from now on" in process.communicate(timeout=SECONDS)[1]
        assert process.returncode == 1
