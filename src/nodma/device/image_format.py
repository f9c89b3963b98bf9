"""Recognize image formats that are not raw, by what they begin or end with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FOOTER_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """A format: its name, the bytes that identify it, and where they are.

    ``offset`` counts from the start of the image, or from its end if it is negative. ``qemu`` is the format's name in
    QEMU, "" if QEMU cannot convert it.
    """

    name: str
    magic: bytes
    offset: int = 0
    qemu: str = ""

    def matches(self, fd: int, size: int) -> bool:
        """Return whether an image of ``size`` bytes has the magic. Raises OSError if it cannot be read."""
        at = self.offset if self.offset >= 0 else size + self.offset
        return 0 <= at <= size - len(self.magic) and os.pread(fd, len(self.magic), at) == self.magic

    def advice(self, path: Path) -> str:
        """Return what to do with such an image instead."""
        if self.name == "LUKS":
            return (
                f"open it with 'cryptsetup open {path} NAME' and serve /dev/mapper/NAME; if it is the guest that"
                " decrypts it, use --raw"
            )
        return (
            f"convert it with 'qemu-img convert -f {self.qemu} -O raw {path} {path.stem}.raw', or attach it with"
            f" 'qemu-nbd -f {self.qemu} -c /dev/nbd0 {path}' and serve /dev/nbd0; if the guest is to see the file"
            " itself, byte for byte, use --raw"
        )


FORMATS: Final = (
    ImageFormat("qcow2", b"QFI\xfb\0\0\0\3", qemu="qcow2"),
    ImageFormat("qcow2", b"QFI\xfb\0\0\0\2", qemu="qcow2"),
    ImageFormat("qcow", b"QFI\xfb", qemu="qcow"),
    ImageFormat("QED", b"QED\0", qemu="qed"),
    ImageFormat("VMDK", b"KDMV", qemu="vmdk"),
    ImageFormat("VMDK", b"COWD", qemu="vmdk"),
    ImageFormat("VMDK", b"# Disk DescriptorFile", qemu="vmdk"),
    ImageFormat("VHDX", b"vhdxfile", qemu="vhdx"),
    ImageFormat("VHD", b"conectix", qemu="vpc"),  # of a dynamic disk, whose footer is repeated here
    ImageFormat("VHD", b"conectix", -_FOOTER_BYTES, qemu="vpc"),
    ImageFormat("VHD", b"conectix", 1 - _FOOTER_BYTES, qemu="vpc"),  # by Virtual PC versions before 2004
    ImageFormat("VDI", b"\x7f\x10\xda\xbe", 0x40, qemu="vdi"),
    ImageFormat("LUKS", b"LUKS\xba\xbe"),
    ImageFormat("Parallels", b"WithoutFreeSpace", qemu="parallels"),
    ImageFormat("Parallels", b"WithouFreSpacExt", qemu="parallels"),
)
"""Formats that are recognized; the first that matches counts."""


def detect_format(fd: int, size: int) -> ImageFormat | None:
    """Return the format of an image of ``size`` bytes, None if it may be raw. Raises OSError if it cannot be read."""
    return next((known for known in FORMATS if known.matches(fd, size)), None)
