"""A guest's kernel: its image, its modules with what they need, and our module built for it."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from nodma.errors import GuestError, Unavailable, UsageError
from nodma.guest.chroot import run_inside
from nodma.guest.command import last_lines
from nodma.guest.kit_directory import locked

MODULE_SOURCE: Final = Path(__file__).parent / "linux"
_SOURCES: Final = ("*.c", "*.h", "Kbuild", "Makefile", "VERSION")
_DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot. ``modules`` is the directory of its release, None if it needs none from us.

    ``root`` is the unpacked Debian that it came with, in which our module can be built; None for a kernel that the
    user named, for whose module ``module`` is given. ``append`` goes to its command line. ``slowness`` is how much
    longer it may take for everything than a distribution's kernel.
    """

    name: str
    release: str
    image: Path
    modules: Path | None = None
    root: Path | None = None
    module: Path | None = None
    append: str = ""
    slowness: float = 1.0

    @classmethod
    def named(cls, image: Path, modules: Path | None = None, module: Path | None = None) -> Kernel:
        """A kernel of the user's. Raises UsageError if there is no such file."""
        for path in (image, *(path for path in (modules, module) if path)):
            if not path.exists():
                raise Unavailable(f"{path} is not there")
        return cls(image.name, modules.name if modules else image.name, image, modules, None, module)

    def files_of(self, names: Iterable[str]) -> dict[str, bytes]:
        """Give the modules that ``names`` need, and those themselves, in the order to load: file name, contents.

        A driver that is part of the image is left out. Raises UsageError for one that this kernel does not have.
        """
        found: dict[str, bytes] = {}

        def visit(name: str) -> None:
            if name in self._built_in or f"{name}.ko" in found:
                return
            path = self._loadable.get(name)
            if path is None:
                raise Unavailable(f"kernel {self.release} has no driver {name}")
            content = path.read_bytes()
            if path.suffix == ".xz":
                content = lzma.decompress(content)
            if match := _DEPENDS.search(content):
                for needed in match[1].decode().split(","):
                    if needed:
                        visit(needed.replace("-", "_"))
            found[f"{name}.ko"] = content

        for name in names:
            visit(name)
        return found

    @cached_property
    def _built_in(self) -> set[str]:
        listed = self.modules / "modules.builtin" if self.modules else None
        if listed is None or not listed.exists():
            return set()
        return {_module_name(Path(line)) for line in listed.read_text().split()}

    @cached_property
    def _loadable(self) -> dict[str, Path]:
        if self.modules is None:
            return {}
        return {_module_name(path): path for path in self.modules.rglob("*.ko*")}

    def build_module(self, cache: Path) -> Path:
        """Build our module for this kernel, unless these sources were; give the .ko file.

        Raises GuestError with the compiler's last lines, UsageError for a kernel that came without headers.
        """
        if self.module:
            return self.module
        if self.root is None:
            raise UsageError(
                f"for {self.image} no module can be built here: build src/nodma/guest/linux for it, and name it with"
                " --module-file"
            )
        sources = sorted(path for pattern in _SOURCES for path in MODULE_SOURCE.glob(pattern))
        digest = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in sources)).hexdigest()[:16]
        built = cache / "modules" / f"{self.release}-{digest}"
        with locked(cache, f"module-{self.release}"):
            if not (built / "nodma.ko").exists():
                self._build(sources, built)
        return built / "nodma.ko"

    def _build(self, sources: list[Path], built: Path) -> None:
        assert self.root
        growing = built.with_name(f"{built.name}.partial")
        shutil.rmtree(growing, ignore_errors=True)
        growing.mkdir(parents=True)
        for path in sources:
            shutil.copy(path, growing)
        command = ["make", "-C", "/build", f"HEADERS=/usr/src/linux-headers-{self.release}", "modules"]
        said = run_inside(
            self.root,
            command,
            f"building the kernel module for {self.release}",
            binds={growing: "/build"},
            log=growing / "build.log",
        )
        if "warning:" in said:
            raise GuestError(f"building the kernel module for {self.release} warns:\n{last_lines(said)}")
        growing.rename(built)


def _module_name(path: Path) -> str:
    """``virtio_blk`` of ``virtio-blk.ko.xz``."""
    return path.name.split(".")[0].replace("-", "_")
