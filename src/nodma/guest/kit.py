"""What `nodma guest setup` fetches: QEMU, kernels with headers, what runs in guests; and what it fetches by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from nodma.errors import Unavailable
from nodma.guest import debug_kernel
from nodma.guest.accelerator import ACCELERATORS
from nodma.guest.debian import Apt, DebianKernel, Progress, host_mirror, unpack, unpack_more
from nodma.guest.kernel import Kernel
from nodma.guest.kit_directory import kit_directory, locked
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

GENERIC: Final = "generic"
"""What the kit calls a distribution's kernel for any machine, whose file systems and drivers are modules."""

EXTRAS: Final[Mapping[str, str]] = {
    GENERIC: "Debian's 6.12 for any machine, beside the cloud kernels",
    "peers": "qemu-storage-daemon, which the benchmarks compare nodma with",
}
"""What is fetched by name only, and what it is."""


@dataclass(frozen=True)
class Kit:
    """A kit that is complete, in ``directory``."""

    directory: Path
    kernels: tuple[DebianKernel, ...]
    has_qemu: bool

    @classmethod
    def open(cls, given: Path | None = None) -> Kit:
        """Return the kit in a directory. Raises Unavailable if there is none, or it is not complete."""
        directory = kit_directory(given)
        record = _read(directory)
        if record is None:
            raise Unavailable(f"there is no guest kit in {directory}: run `nodma guest setup`")
        return cls(directory, tuple(DebianKernel(**kernel) for kernel in record["kernels"]), record["has_qemu"])

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

    def has(self, extra: str) -> bool:
        """Whether one of EXTRAS was fetched."""
        return _extra_record(self.directory, extra) is not None

    @property
    def debug_kernel(self) -> Kernel | None:
        """The debug kernel, None if it was not built."""
        try:
            return debug_kernel.find(self.directory)
        except Unavailable:
            return None

    def kernel(self, name: str) -> Kernel:
        """Return a kernel by version ("6.12"), release, or suite; "generic" and "debug" are those that setup adds.

        Raises UsageError for one that is not there.
        """
        for kernel in self.kernels:
            short = short_name(kernel)
            if name in (short, kernel.release, kernel.suite):
                return self._kernel(short, kernel)
        if name == GENERIC:
            record = _extra_record(self.directory, GENERIC)
            if record is None:
                raise Unavailable("the kit has no generic kernel: fetch it with `nodma guest setup --with generic`")
            return self._kernel(GENERIC, DebianKernel(**record))
        if name == debug_kernel.NAME:
            return debug_kernel.find(self.directory)
        known = ", ".join(short_name(kernel) for kernel in self.kernels)
        raise Unavailable(f"the kit has no kernel {name!r}; it has {known}")

    def _kernel(self, name: str, kernel: DebianKernel) -> Kernel:
        modules = self.root / "usr/lib/modules" / kernel.release
        images = (modules / "vmlinuz", self.root / "boot" / f"vmlinuz-{kernel.release}")
        image = next(path for path in images if path.exists())
        return Kernel(name, kernel.release, image, modules, self.root)


def short_name(kernel: DebianKernel) -> str:
    """``6.12`` of 6.12.117+deb13-cloud-amd64."""
    return ".".join(kernel.release.split(".")[:2])


def set_up(
    given: Path | None = None,
    *,
    mirror: str | None = None,
    fetch_qemu: bool = False,
    extras: Iterable[str] = (),
    progress: Progress = lambda *_: None,
) -> Kit:
    """Fetch what is missing; return the kit. If it is complete, do nothing; if it was interrupted, go on from there.

    ``mirror`` is a Debian mirror, this machine's own if None. ``fetch_qemu`` fetches QEMU although one on PATH would
    do. ``extras`` are of EXTRAS. Raises GuestError, or UsageError if this machine cannot.
    """
    directory = kit_directory(given)
    with locked(directory, "setup", lambda: progress("waiting for another setup to end", 0.0)):
        needs_qemu = fetch_qemu or Qemu.on_path() is None
        record = _read(directory)
        if record is None or needs_qemu > record["has_qemu"]:
            _fetch(directory, mirror or host_mirror(), needs_qemu, progress)
        for extra in extras:
            if _extra_record(directory, extra) is None:
                _fetch_extra(directory, extra, mirror or host_mirror(), progress)
        return Kit.open(directory)


def clean(given: Path | None = None) -> Path | None:
    """Remove the kit, and all that was built with it; return its directory, None if there was none.

    Files that are not a kit's stay.
    """
    directory = kit_directory(given)
    if not directory.exists():
        return None
    with locked(directory, "setup"):
        (directory / "kit.json").unlink(missing_ok=True)
        _forget_extras(directory)
        for accelerator in ACCELERATORS:
            (directory / f"{accelerator}.json").unlink(missing_ok=True)
        for name in ("root", "root.partial", "apt", "modules", "layers"):
            shutil.rmtree(directory / name, ignore_errors=True)
        debug_kernel.remove(directory)
    for lock in directory.glob("*.lock"):
        lock.unlink()
    if not any(directory.iterdir()):
        directory.rmdir()
    return directory


def _fetch(directory: Path, mirror: str | None, with_qemu: bool, progress: Progress) -> None:
    apt = _apt(directory, mirror)
    (directory / "kit.json").unlink(missing_ok=True)
    _forget_extras(directory)
    progress("fetching Debian's lists of packages", 0.0)
    apt.update()
    kernels = apt.kernels("cloud-amd64")
    names = [*_BUILD, *_GUEST, *_FIRMWARE, *(_QEMU if with_qemu else ())]
    names += [package for kernel in kernels for package in kernel.packages]
    packages = apt.download(names, progress)
    shutil.rmtree(directory / "root", ignore_errors=True)
    shutil.rmtree(directory / "layers", ignore_errors=True)
    unpack(packages, directory / "root", progress)
    record = {"format": _FORMAT, "has_qemu": with_qemu, "kernels": [asdict(kernel) for kernel in kernels]}
    _write(directory / "kit.json", record)


def _fetch_extra(directory: Path, extra: str, mirror: str | None, progress: Progress) -> None:
    """Fetch one of EXTRAS, and unpack it into the kit's Debian."""
    apt = _apt(directory, mirror)
    progress("fetching Debian's lists of packages", 0.0)
    apt.update()
    if extra == GENERIC:
        (kernel,) = apt.kernels("amd64", ["trixie"])
        names, record = list(kernel.packages), asdict(kernel)
    else:
        names, record = ["qemu-utils"], {}
    packages = apt.download(names, progress)
    begun = _extra_path(directory, extra).with_suffix(".begun")
    interrupted = begun.exists()  # then files of it may be there in part
    begun.touch()
    unpack_more(packages, directory / "root", progress, replace=interrupted)
    _write(_extra_path(directory, extra), record)
    begun.unlink()


def _apt(directory: Path, mirror: str | None) -> Apt:
    if mirror is None:
        raise Unavailable(
            "this machine's apt knows no Debian mirror: name one with --mirror URL, or use your own --qemu and --kernel"
        )
    return Apt(directory / "apt", mirror)


def _extra_path(directory: Path, extra: str) -> Path:
    return directory / f"extra-{extra}.json"


def _extra_record(directory: Path, extra: str) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(_extra_path(directory, extra).read_text())
    except (OSError, ValueError):
        return None
    return record


def _forget_extras(directory: Path) -> None:
    for extra in EXTRAS:
        _extra_path(directory, extra).unlink(missing_ok=True)
        _extra_path(directory, extra).with_suffix(".begun").unlink(missing_ok=True)


def _write(path: Path, record: Mapping[str, Any]) -> None:
    fresh = path.with_name(f"{path.name}.partial")
    fresh.write_text(json.dumps(record, indent=2))
    fresh.rename(path)


def _read(directory: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((directory / "kit.json").read_text())
    except (OSError, ValueError):
        return None
    return record if record.get("format") == _FORMAT else None
