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

    def make(name: str, *needs: str, place: str = "virtio", said: bytes = b"") -> None:
        content = b"ELF\0" + said + b"depends=" + ",".join(needs).encode() + b"\0"
        path = modules / "kernel" / place / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(lzma.compress(content) if path.suffix == ".xz" else content)

    make("virtio.ko.xz", "virtio_ring")
    make("virtio-pci.ko", "virtio")
    make("virtio_blk.ko.xz", "virtio")
    make("crc32c_generic.ko", place="crypto", said=b"alias=crypto-crc32c\0alias=crc32c\0")
    make("jbd2.ko", place="fs")
    wishes = b"softdep=pre: crypto-crc32c absent post: late\0alias=fs-ext3\0alias=fs-ext4\0"
    make("ext4.ko.xz", "jbd2", place="fs", said=wishes)
    image = tmp_path / "vmlinuz"
    image.touch()
    return Kernel.named(image, modules)


def test_what_a_driver_needs_comes_first_and_once(kernel: Kernel) -> None:
    assert list(kernel.files_of(["virtio_blk", "virtio_pci"])) == ["virtio.ko", "virtio_blk.ko", "virtio_pci.ko"]


def test_compressed_modules_are_unpacked(kernel: Kernel) -> None:
    assert kernel.files_of(["virtio_blk"])["virtio_blk.ko"].startswith(b"ELF")


def test_what_is_built_in_is_not_loaded(kernel: Kernel) -> None:
    assert kernel.files_of(["virtio_ring"]) == {}


def test_what_a_driver_only_wishes_for_comes_along_if_it_is_there(kernel: Kernel) -> None:
    """ext4 names crypto-crc32c, which is an alias, in a softdep; and others that this kernel does not have."""
    assert list(kernel.files_of(["ext4"])) == ["crc32c_generic.ko", "jbd2.ko", "ext4.ko"]


def test_a_kernel_is_told_which_files_it_asks_for(kernel: Kernel) -> None:
    files, asked = kernel.on_demand(["ext4", "virtio_ring", "absent"])
    assert set(files) == {"crc32c_generic.ko", "jbd2.ko", "ext4.ko"}
    assert set(asked) == {"ext4", "fs-ext3", "fs-ext4"}
    assert asked["fs-ext4"] == ["crc32c_generic.ko", "jbd2.ko", "ext4.ko"]


def make_image(path: Path, release: str) -> Path:
    """The header of a Linux image, as far as it is looked at."""
    header = bytearray(0x400)
    header[0x202:0x206] = b"HdrS"
    header[0x20E:0x210] = (0x300 - 0x200).to_bytes(2, "little")
    text = f"{release} (somebody@somewhere) #1 SMP".encode()
    header[0x300 : 0x300 + len(text)] = text
    path.write_bytes(bytes(header))
    return path


@pytest.mark.parametrize("layout", ["lib/modules/6.6.6-amd64", "usr/lib/modules/6.6.6-amd64"])
def test_modules_are_found_by_the_release_in_the_image(tmp_path: Path, layout: str) -> None:
    (tmp_path / layout / "kernel").mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    found = Kernel.named(make_image(tmp_path / "boot" / "vmlinuz", "6.6.6-amd64"))
    assert found.release == "6.6.6-amd64"
    assert found.modules == tmp_path / layout


def test_modules_beside_the_image(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    assert Kernel.named(make_image(tmp_path / "vmlinuz", "6.6.6")).modules == tmp_path


def test_an_image_that_does_not_say_its_release(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"MZ")
    found = Kernel.named(tmp_path / "vmlinuz")
    assert (found.release, found.modules) == ("vmlinuz", None)


def test_a_driver_that_is_not_there(kernel: Kernel) -> None:
    with pytest.raises(UsageError, match=r"kernel 6\.6\.6 has no driver virtio_net"):
        kernel.files_of(["virtio_net"])


def test_a_users_kernel_needs_a_module_that_was_built_for_it(kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--module-file"):
        kernel.build_module(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        Kernel.named(tmp_path / "absent")
