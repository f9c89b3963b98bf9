"""Which modules a kernel needs loaded, in which order; and what is said where ours cannot be built."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from nodma.errors import UsageError
from nodma.guest.kernel import Kernel


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A release with modules of three kinds: built in, plain, compressed."""
    modules = tmp_path / "6.6.6"
    (modules / "kernel" / "virtio").mkdir(parents=True)
    (modules / "modules.builtin").write_text("kernel/drivers/virtio/virtio_ring.ko\n")

    def make(name: str, *needs: str) -> None:
        content = b"ELF\0depends=" + ",".join(needs).encode() + b"\0"
        path = modules / "kernel" / "virtio" / name
        path.write_bytes(lzma.compress(content) if path.suffix == ".xz" else content)

    make("virtio.ko.xz", "virtio_ring")
    make("virtio-pci.ko", "virtio")
    make("virtio_blk.ko.xz", "virtio")
    image = tmp_path / "vmlinuz"
    image.touch()
    return Kernel.named(image, modules)


def test_what_a_driver_needs_comes_first_and_once(kernel: Kernel) -> None:
    assert list(kernel.files_of(["virtio_blk", "virtio_pci"])) == ["virtio.ko", "virtio_blk.ko", "virtio_pci.ko"]


def test_compressed_modules_are_unpacked(kernel: Kernel) -> None:
    assert kernel.files_of(["virtio_blk"])["virtio_blk.ko"].startswith(b"ELF")


def test_what_is_built_in_is_not_loaded(kernel: Kernel) -> None:
    assert kernel.files_of(["virtio_ring"]) == {}


def test_a_driver_that_is_not_there(kernel: Kernel) -> None:
    with pytest.raises(UsageError, match=r"kernel 6\.6\.6 has no driver virtio_net"):
        kernel.files_of(["virtio_net"])


def test_a_users_kernel_needs_a_module_that_was_built_for_it(kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--module-file"):
        kernel.build_module(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        Kernel.named(tmp_path / "absent")
