"""What `nodma guest setup` fetches: QEMU, kernels with headers, what runs in guests, and the benchmarks' peer."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from nodma.errors import Unavailable, UsageError
from nodma.guest import debug_kernel
from nodma.guest.cache import cache_directory, locked
from nodma.guest.debian import Apt, CloudKernel, Progress, host_mirror, unpack
from nodma.guest.kernel import Kernel
from nodma.guest.qemu import Qemu
from nodma.guest.tools import Tools

_FORMAT: Final = 2
"""Counted up when what is fetched changes: an older kit is then fetched anew."""

_BUILD: Final = (
    "base-files",
    "bash",
    "dkms",
    "dash",
    "coreutils",
    "sed",
    "grep",
    "findutils",
    "diffutils",
    "mawk",
    "make",
    "kmod",
    "tar",
)
_GUEST: Final = ("busybox-static", "fio", "e2fsprogs", "python3-minimal", "libpython3-stdlib")
_FIRMWARE: Final = ("seabios", "ovmf", "qemu-system-data")
_QEMU: Final = ("qemu-system-x86",)
_PEERS: Final = ("qemu-utils",)
"""Has qemu-storage-daemon, which the benchmarks measure us against."""


@dataclass(frozen=True)
class Kit:
    """A kit that is complete, in ``directory``."""

    directory: Path
    kernels: tuple[CloudKernel, ...]
    has_qemu: bool

    @classmethod
    def open(cls, cache: Path | None = None) -> Kit:
        """Give the kit in a cache directory. Raises UsageError if there is none, or not all of it."""
        directory = cache_directory(cache)
        record = _read(directory)
        if record is None:
            raise Unavailable(f"there is no guest kit in {directory}: run `nodma guest setup`")
        return cls(directory, tuple(CloudKernel(**kernel) for kernel in record["kernels"]), record["has_qemu"])

    @property
    def root(self) -> Path:
        """The unpacked Debian."""
        return self.directory / "root"

    @property
    def qemu(self) -> Qemu:
        """The QEMU to use: that on PATH if it will do, else the kit's. Raises UsageError if neither does."""
        found = Qemu.on_path()
        if found is None and self.has_qemu:
            found = Qemu.unpacked(self.root)
        if found is None:
            raise Unavailable("the QEMU that this kit was set up with is gone from PATH: run `nodma guest setup` again")
        return found.with_firmware(self.root)

    @property
    def tools(self) -> Tools:
        """What machines are made with."""
        return Tools(self.qemu, self.directory, self.root / "usr/bin/busybox", self.root)

    @property
    def debug_kernel(self) -> Kernel | None:
        """The debug kernel, None if it was not built."""
        try:
            return debug_kernel.find(self.directory)
        except Unavailable:
            return None

    def kernel(self, name: str) -> Kernel:
        """Return a kernel by version ("6.12"), release, or suite; "debug" is the one that was built here.

        Raises UsageError for one that is not there.
        """
        for kernel in self.kernels:
            short = short_name(kernel)
            if name in (short, kernel.release, kernel.suite):
                modules = self.root / "usr/lib/modules" / kernel.release
                images = (modules / "vmlinuz", self.root / "boot" / f"vmlinuz-{kernel.release}")
                image = next(path for path in images if path.exists())
                return Kernel(short, kernel.release, image, modules, self.root)
        if name == debug_kernel.NAME:
            return debug_kernel.find(self.directory)
        known = ", ".join(short_name(kernel) for kernel in self.kernels)
        raise Unavailable(f"the kit has no kernel {name!r}; it has {known}")


def short_name(kernel: CloudKernel) -> str:
    """``6.12`` of 6.12.117+deb13-cloud-amd64."""
    return ".".join(kernel.release.split(".")[:2])


def set_up(
    cache: Path | None = None,
    *,
    mirror: str | None = None,
    own_qemu: bool = False,
    progress: Progress = lambda *_: None,
) -> Kit:
    """Fetch what is missing; give the kit. Done already, it does nothing; broken off, it goes on where it was.

    ``mirror`` is a Debian mirror, this machine's own if None. ``own_qemu`` fetches QEMU although one on PATH would
    do. Raises GuestError, or UsageError if this machine cannot.
    """
    directory = cache_directory(cache)
    with locked(directory, "setup", lambda: progress("waiting for another setup to end", 0.0)):
        needs_qemu = own_qemu or Qemu.on_path() is None
        record = _read(directory)
        if record is None or needs_qemu > record["has_qemu"]:
            _fetch(directory, mirror or host_mirror(), needs_qemu, progress)
        return Kit.open(directory)


def clean(cache: Path | None = None) -> Path:
    """Remove the kit, and all that was built with it; give the directory. What is not a kit's is left alone."""
    directory = cache_directory(cache)
    if not directory.exists():
        return directory
    with locked(directory, "setup"):
        (directory / "kit.json").unlink(missing_ok=True)
        for name in ("root", "root.partial", "apt", "modules", "layers"):
            shutil.rmtree(directory / name, ignore_errors=True)
        debug_kernel.remove(directory)
    for lock in directory.glob("*.lock"):
        lock.unlink()
    if not any(directory.iterdir()):
        directory.rmdir()
    return directory


def _fetch(directory: Path, mirror: str | None, with_qemu: bool, progress: Progress) -> None:
    if mirror is None:
        raise UsageError(
            "this machine's apt knows no Debian mirror: name one with --mirror URL, or use your own --qemu and --kernel"
        )
    (directory / "kit.json").unlink(missing_ok=True)
    progress("fetching Debian's lists of packages", 0.0)
    apt = Apt(directory / "apt", mirror)
    apt.update()
    kernels = apt.cloud_kernels()
    names = [*_BUILD, *_GUEST, *_FIRMWARE, *_PEERS, *(_QEMU if with_qemu else ())]
    names += [package for kernel in kernels for package in kernel.packages]
    packages = apt.download(names, progress)
    shutil.rmtree(directory / "root", ignore_errors=True)
    shutil.rmtree(directory / "layers", ignore_errors=True)
    unpack(packages, directory / "root", progress)
    record = {"format": _FORMAT, "has_qemu": with_qemu, "kernels": [asdict(kernel) for kernel in kernels]}
    fresh = directory / "kit.json.partial"
    fresh.write_text(json.dumps(record, indent=2))
    fresh.rename(directory / "kit.json")


def _read(directory: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((directory / "kit.json").read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("format") == _FORMAT else None
