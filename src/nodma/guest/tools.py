"""What machines are made with: a QEMU, a busybox, a cache."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodma.errors import Unavailable
from nodma.guest.kit_directory import kit_directory
from nodma.guest.qemu import Qemu

_HEAD_BYTES: Final = 4096


@dataclass(frozen=True)
class Tools:
    """``root`` is the kit's unpacked Debian, None without a kit. ``busybox`` is a static one, for the guest."""

    qemu: Qemu
    cache: Path
    busybox: Path
    root: Path | None = None

    @classmethod
    def of_this_machine(cls, qemu: Qemu, cache: Path | None = None) -> Tools:
        """Return tools without a kit. Raises Unavailable without a static busybox on PATH."""
        path = shutil.which("busybox")
        if path is None:
            raise Unavailable("a guest needs a static busybox, and none is on PATH: install busybox-static")
        with Path(path).open("rb") as file:
            if b"ld-linux" in file.read(_HEAD_BYTES):
                raise Unavailable(f"a guest needs a static busybox, and {path} is not: install busybox-static")
        return cls(qemu, kit_directory(cache), Path(path))
