"""Disk images: what can be opened, what is said of what cannot, and how they are zeroed, discarded, and grow."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodma.device.image import PIECE, Cache, Image
from nodma.errors import Unavailable, UsageError

LOOP_SIZE = 16 << 20


def test_images_that_cannot_be_served_are_refused(tmp_path: Path, count_descriptors: Callable[[], int]) -> None:
    before = count_descriptors()
    odd = tmp_path / "odd"
    odd.write_bytes(bytes(1000))
    empty = tmp_path / "empty"
    empty.touch()
    for path, why in (
        (tmp_path / "missing", "does not exist: create one"),
        (empty, "is empty: set a size"),
        (odd, "has 1000 bytes, expected a multiple of 512: extend it"),
    ):
        with pytest.raises(Unavailable, match=why):
            Image(path)
    assert count_descriptors() == before


@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_neither_file_nor_block_device_is_refused_at_once(tmp_path: Path, read_only: bool) -> None:
    """Opening a FIFO for reading would wait for whoever writes to it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, what in ((tmp_path, "a directory"), (fifo, "a FIFO"), (Path("/dev/null"), "a character device")):
        with pytest.raises(Unavailable, match=f"is {what}: it must be a regular file or a block device"):
            Image(path, read_only=read_only)


@pytest.mark.parametrize(
    ("number", "read_only", "why"),
    [
        (errno.EACCES, False, r"no permission to write the image .* \(use --read-only to serve it read-only\)"),
        (errno.EACCES, True, "no permission to read the image"),
        (errno.EROFS, False, "cannot open the image .*: Read-only file system .use --read-only"),
        (errno.EIO, False, "cannot open the image .*: Input/output error$"),
    ],
)
def test_what_cannot_be_opened_is_refused_with_what_would_help(
    image: Path, monkeypatch: pytest.MonkeyPatch, number: int, read_only: bool, why: str
) -> None:
    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(Unavailable, match=why):
        Image(image, read_only=read_only)


def test_a_file_system_without_o_direct_says_which_cache_mode_works(
    image: Path, monkeypatch: pytest.MonkeyPatch, count_descriptors: Callable[[], int]
) -> None:
    real = os.open

    def without_direct(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", without_direct)
    before = count_descriptors()
    with pytest.raises(Unavailable, match="may not support O_DIRECT: use --cache writeback"):
        Image(image, cache=Cache.NONE)
    assert count_descriptors() == before


# Formats


@pytest.mark.parametrize(
    ("name", "advice", "magic", "offset"),
    [
        ("qcow2", "convert -f qcow2 -O raw", b"QFI\xfb\0\0\0\3", 0),
        ("qcow2", "qemu-nbd -f qcow2", b"QFI\xfb\0\0\0\2", 0),
        ("qcow", "convert -f qcow ", b"QFI\xfb\0\0\0\1", 0),
        ("QED", "convert -f qed ", b"QED\0", 0),
        ("VMDK", "convert -f vmdk ", b"KDMV\1\0\0\0", 0),
        ("VMDK", "convert -f vmdk ", b"# Disk DescriptorFile\nversion=1\n", 0),
        ("VHDX", "convert -f vhdx ", b"vhdxfile", 0),
        ("VHD", "convert -f vpc ", b"conectix", 0),
        ("VHD", "convert -f vpc ", b"conectix", (1 << 20) - 512),
        ("VHD", "convert -f vpc ", b"conectix", (1 << 20) - 511),
        ("VDI", "convert -f vdi ", struct.pack("<I", 0xBEDA107F), 64),
        ("LUKS", "cryptsetup open", b"LUKS\xba\xbe\0\2", 0),
        ("Parallels", "convert -f parallels ", b"WithoutFreeSpace", 0),
        ("Parallels", "convert -f parallels ", b"WithouFreSpacExt", 0),
    ],
)
def test_formats_that_are_not_raw_are_refused(
    tmp_path: Path, name: str, advice: str, magic: bytes, offset: int, count_descriptors: Callable[[], int]
) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(magic)
    before = count_descriptors()
    for read_only in (False, True):
        with pytest.raises(Unavailable, match=f"is in the format {name}, and only raw images.*{advice}.*--raw"):
            Image(path, read_only=read_only)
    assert count_descriptors() == before
    with Image(path, raw=True) as image:
        assert image.size == 1 << 20


def test_an_image_of_one_sector_is_looked_at_within_its_bounds(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\x55" * 512)
    with Image(path) as image:
        assert image.size == 512


# Locks


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (False, False, "it does not let others write to it"),
        (False, True, "it writes to it"),
        (True, False, "it does not let others write to it"),
        (True, True, None),
    ],
    ids=["writer-writer", "writer-reader", "reader-writer", "reader-reader"],
)
def test_an_image_has_one_writer_or_readers(image: Path, first: bool, second: bool, why: str | None) -> None:
    with Image(image, read_only=first):
        if why:
            with pytest.raises(Unavailable, match=f"{image} is in use: .*{why}.*--no-lock"):
                Image(image, read_only=second)
        else:
            Image(image, read_only=second).close()
        Image(image, read_only=second, lock=False).close()
    Image(image).close()  # and once it is closed, anybody


def test_in_the_cache_mode_none_it_is_locked_as_well(image: Path) -> None:
    with Image(image, cache=Cache.NONE), pytest.raises(Unavailable, match="is in use"):
        Image(image, cache=Cache.NONE)


def lock(fd: int, byte: int, kind: int = fcntl.F_RDLCK) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, 0, byte, 1, 0))


def is_locked(fd: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, byte, 1, 0))
    return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)


@pytest.mark.parametrize(
    ("byte", "kind", "writer", "reader"),
    [
        (100, fcntl.F_RDLCK, True, True),  # a reader of QEMU's
        (101, fcntl.F_RDLCK, False, False),  # a writer
        (200, fcntl.F_RDLCK, False, False),  # one that lets nobody read
        (201, fcntl.F_RDLCK, False, True),  # one that lets nobody write
        (100, fcntl.F_WRLCK, False, False),
        (202, fcntl.F_RDLCK, True, True),  # permissions that no disk needs
        (103, fcntl.F_RDLCK, True, True),
    ],
)
def test_the_locks_are_qemus(image: Path, byte: int, kind: int, writer: bool, reader: bool) -> None:
    """See raw_apply_lock_bytes in QEMU's block/file-posix.c: permissions from byte 100 on, refusals from 200 on."""
    for read_only, allowed in ((False, writer), (True, reader)):
        fd = os.open(image, os.O_RDWR)
        lock(fd, byte, kind)
        try:
            if allowed:
                Image(image, read_only=read_only).close()
            else:
                with pytest.raises(Unavailable, match="is in use"):
                    Image(image, read_only=read_only)
        finally:
            os.close(fd)


@pytest.mark.parametrize(("read_only", "held"), [(False, {100, 101, 201}), (True, {100, 201})])
def test_these_bytes_are_locked(image: Path, read_only: bool, held: set[int]) -> None:
    fd = os.open(image, os.O_RDWR)
    with Image(image, read_only=read_only):
        assert {byte for byte in range(300) if is_locked(fd, byte)} == held
    assert not any(is_locked(fd, byte) for byte in range(300))
    os.close(fd)


def test_a_file_system_without_locks_says_so(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with pytest.raises(Unavailable, match=r"cannot lock the image .*: No locks available; use --no-lock"):
        Image(image)


# What it says of itself


def test_the_serial_is_the_same_each_time_and_another_for_another_image(tmp_path: Path, image: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_bytes(bytes(512))
    link.symlink_to(image)
    serials = []
    for path in (image, image, link, other):
        with Image(path) as opened:
            serials.append(opened.serial)
    assert serials[0] == serials[1] == serials[2] != serials[3]
    assert all(1 <= len(serial) <= 20 and serial.isalnum() for serial in serials)


@pytest.mark.parametrize(("preferred", "physical"), [(512, 512), (4096, 4096), (1 << 20, 4096), (0, 512), (6000, 4096)])
def test_how_a_file_is_best_read_is_not_what_is_written_at_once(
    image: Path, monkeypatch: pytest.MonkeyPatch, preferred: int, physical: int
) -> None:
    """NFS says 1 MiB, ZFS its record size, tmpfs with huge pages 2 MiB."""
    real = os.fstat

    def fstat(fd: int) -> Any:
        found = real(fd)
        return os.stat_result(list(found)[:10], {"st_blksize": preferred})

    monkeypatch.setattr(os, "fstat", fstat)
    with Image(image) as opened:
        assert (opened.sector, opened.physical_block, opened.min_io) == (512, physical, physical)


# Zeroes and discards


class Refusing(Image):
    """Its file system answers each fallocate with the next of ``answers``: an errno, or 0 to do it."""

    def __init__(self, path: Path, answers: list[int]) -> None:
        super().__init__(path)
        self.answers = answers
        self.asked: list[tuple[int, int]] = []

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        self.asked.append((offset, length))
        if self.answers and (number := self.answers.pop(0)):
            raise OSError(number, os.strerror(number))
        super()._fallocate(mode, offset, length)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.ENODEV, errno.EOPNOTSUPP, errno.EBUSY])
def test_what_cannot_be_zeroed_is_written_and_what_cannot_be_discarded_stays(image: Path, number: int) -> None:
    before = image.read_bytes()
    with Refusing(image, [number]) as opened:
        opened.write_zeroes(512, 300 * 512, unmap=True)
    after = before[:512] + bytes(300 * 512) + before[301 * 512 :]
    assert image.read_bytes() == after
    with Refusing(image, [number]) as opened:
        opened.discard(400 * 512, 512)
    assert image.read_bytes() == after


def test_an_interrupted_call_is_made_again(image: Path) -> None:
    with Refusing(image, [errno.EINTR, errno.EINTR]) as opened:
        opened.write_zeroes(0, 4096, unmap=False)
        assert opened.asked == [(0, 4096)] * 3
    assert image.read_bytes()[:4096] == bytes(4096)


def test_a_disk_that_fails_is_not_taken_for_one_that_cannot(image: Path) -> None:
    for what in ("discard", "write_zeroes"):
        with Refusing(image, [errno.EIO]) as opened, pytest.raises(OSError, match="Input/output error"):
            getattr(opened, what)(0, 4096, **({"unmap": True} if what == "write_zeroes" else {}))


def test_large_ranges_are_cut_and_can_be_cancelled_between_the_pieces(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(4 * PIECE)
    with Refusing(path, []) as opened:
        opened.discard(PIECE // 2, 2 * PIECE)
        assert opened.asked == [(PIECE // 2, PIECE // 2), (PIECE, PIECE), (2 * PIECE, PIECE // 2)]
        for what, more in (("discard", {}), ("write_zeroes", {"unmap": True})):
            opened.asked.clear()
            with pytest.raises(OSError, match="cancelled") as caught:
                getattr(opened, what)(0, 4 * PIECE, cancelled=lambda: len(opened.asked) == 2, **more)
            assert caught.value.errno == errno.ECANCELED
            assert len(opened.asked) == 2
        opened.answers[:] = [errno.EOPNOTSUPP] * 9
        left = 3
        looks = iter(range(100))
        with pytest.raises(OSError, match="cancelled"):  # written, too
            opened.write_zeroes(0, PIECE, unmap=True, cancelled=lambda: next(looks) > left)


def test_zeroes_do_not_make_a_truncated_image_longer(image: Path) -> None:
    for answers in ([], [errno.EOPNOTSUPP]):
        with Refusing(image, answers) as opened:
            os.truncate(image, 4096)
            with pytest.raises(OSError, match="is shorter than the disk"):
                opened.write_zeroes(0, 8192, unmap=False)
        assert image.stat().st_size == 4096
        os.truncate(image, 1 << 20)


@pytest.fixture
def loop_4k(tmp_path: Path) -> Iterator[Path]:
    """A block device with sectors of 4096 bytes, its content 0xFF."""
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xff" * LOOP_SIZE)
    command = ["losetup", "-b", "4096", "--direct-io=off", "-f", "--show", str(backing)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    path = Path(made.stdout.strip())
    yield path
    subprocess.run(["losetup", "-d", str(path)], check=True)


@pytest.mark.parametrize(("offset", "length"), [(4096, 4096), (512, 512), (1024, 8192), (3584, 1024), (0, 3584)])
@pytest.mark.parametrize("cache", list(Cache))
def test_a_block_device_with_large_sectors_is_zeroed_by_the_byte(
    loop_4k: Path, offset: int, length: int, cache: Cache
) -> None:
    with Image(loop_4k, cache=cache) as opened:
        assert (opened.sector, opened.physical_block, opened.min_io) == (4096, 4096, 4096)
        assert opened.is_block
        opened.discard(offset, length)
        inside = -(-offset // 4096) * 4096, (offset + length) // 4096 * 4096
        data = os.pread(opened.buffered_fd, 1 << 16, 0)
        assert all(data[at] == 0xFF for at in range(len(data)) if not inside[0] <= at < inside[1])
        opened.write_zeroes(offset, length, unmap=True)
        data = os.pread(opened.buffered_fd, 1 << 16, 0)
        assert data[offset : offset + length] == bytes(length)
        assert all(data[at] == 0xFF for at in range(len(data)) if not min(inside[0], offset) <= at < offset + length)


def test_a_block_device_is_locked_and_has_a_serial(loop_4k: Path) -> None:
    with Image(loop_4k) as opened:
        assert opened.serial
        with pytest.raises(Unavailable, match="is in use"):
            Image(loop_4k)


def test_a_read_only_block_device_is_refused_unless_read_only(loop_4k: Path) -> None:
    subprocess.run(["blockdev", "--setro", str(loop_4k)], check=True)
    try:
        with pytest.raises(Unavailable, match="read-only: use --read-only"):
            Image(loop_4k)
        Image(loop_4k, read_only=True).close()
    finally:
        subprocess.run(["blockdev", "--setrw", str(loop_4k)], check=True)


# Its size


def test_an_image_grows_and_does_not_shrink(image: Path) -> None:
    with Image(image) as opened:
        assert not opened.grow()
        os.truncate(image, (2 << 20) + 100)
        assert opened.grow()
        assert opened.size == 2 << 20
        os.truncate(image, 1 << 20)
        with pytest.raises(UsageError, match="has shrunk from 2097152 to 1048576 bytes"):
            opened.grow()
        assert opened.size == 2 << 20


def test_a_file_system_that_does_not_say_how_large_it_is_keeps_nobody(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr("nodma.device.image._SIZE_SECONDS", 0.05)
    with Image(image) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(os, "lseek", lambda *_: answers.wait(30.0))
            with pytest.raises(Unavailable, match="its file system does not answer"):
                opened.grow()
            asking = threading.active_count()
            for _ in range(100):  # each would wait, and leave another thread
                with pytest.raises(Unavailable, match="its file system does not answer"):
                    opened.grow()
            assert threading.active_count() == asking
        answers.set()
        assert opened.size == 1 << 20


def test_without_a_thread_an_image_keeps_its_size(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with Image(image) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none_left)
            with pytest.raises(Unavailable, match="cannot determine the size"):
                opened.grow()
        assert not opened.grow()


def test_closing_twice_is_harmless(image: Path, count_descriptors: Callable[[], int]) -> None:
    before = count_descriptors()
    opened = Image(image)
    assert opened.close()
    assert opened.close()
    assert count_descriptors() == before
