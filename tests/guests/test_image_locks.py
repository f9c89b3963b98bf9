"""QEMU and nodma keep each other out of an image: QEMU's own programs, both ways. No guest is booted."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodma.device.image import Image
from nodma.errors import Unavailable
from nodma.guest.qemu import library_path, loader

SECONDS = 60.0


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def qemu(kit: Any) -> tuple[str, ...]:
    """What runs a program of the kit's, to which its name is added."""
    root = kit.root
    if not (root / "usr/bin/qemu-storage-daemon").exists() or not (root / "usr/bin/qemu-img").exists():
        pytest.skip("the kit has no qemu-img or no qemu-storage-daemon")
    return (str(loader(root)), "--library-path", library_path(root), str(root / "usr/bin") + "/")


def qemu_img(qemu: tuple[str, ...], *words: str) -> str:
    """Run qemu-img; return what it complained of."""
    *run, place = qemu
    done = subprocess.run(
        [*run, place + "qemu-img", *words], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode == 0) == (done.stderr == ""), done.stderr
    return done.stderr


@contextmanager
def daemon(qemu: tuple[str, ...], image: Path, *, writable: bool) -> Iterator[None]:
    """A qemu-storage-daemon that exports the image."""
    *run, place = qemu
    ready = image.with_suffix(".pid")
    node = f"driver=file,node-name=disk,filename={image},read-only={'off' if writable else 'on'}"
    command = [*run, place + "qemu-storage-daemon", "--blockdev", node, "--pidfile", str(ready)]
    command += ["--nbd-server", f"addr.type=unix,addr.path={image.with_suffix('.nbd')}"]
    export = f"type=nbd,id=disk,node-name=disk,writable={'on' if writable else 'off'}"
    with subprocess.Popen([*command, "--export", export]) as process:
        try:
            end = time.monotonic() + SECONDS
            while not ready.exists():
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.01)
            yield
        finally:
            process.kill()


@pytest.mark.parametrize(("read_only", "readable"), [(False, False), (True, True)])
def test_what_nodma_serves_qemu_does_not_touch(
    qemu: tuple[str, ...], image: Path, read_only: bool, readable: bool
) -> None:
    write = ("bench", "-f", "raw", "-w", "-c", "1", str(image))
    with Image(image, read_only=read_only):
        assert 'Failed to get "write" lock' in qemu_img(qemu, *write)
        assert 'Failed to get "write" lock' in qemu_img(qemu, "resize", "-f", "raw", str(image), "2M")
        assert qemu_img(qemu, "create", "-f", "qcow2", "-F", "raw", "-b", str(image), f"{image}.top") == ""
        said = qemu_img(qemu, "convert", "-O", "raw", f"{image}.top", f"{image}.copy")  # a reader, and no writers
        assert ("lock" not in said) == readable
    assert qemu_img(qemu, *write) == ""


@pytest.mark.parametrize(
    ("writable", "read_only", "allowed"), [(True, False, False), (True, True, False), (False, False, True)]
)
def test_what_qemu_writes_nodma_does_not_serve(
    qemu: tuple[str, ...], image: Path, writable: bool, read_only: bool, allowed: bool
) -> None:
    """An export for reading lets others write: it says so in its locks."""
    with daemon(qemu, image, writable=writable):
        if allowed:
            Image(image, read_only=read_only).close()
        else:
            with pytest.raises(Unavailable, match="is in use"):
                Image(image, read_only=read_only)
        Image(image, read_only=read_only, lock=False).close()
    Image(image).close()
