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

from nodma.errors import GuestError, Unavailable
from nodma.guest.chroot import run_inside
from nodma.guest.command import last_lines
from nodma.guest.kit_directory import locked

MODULE_SOURCE: Final = Path(__file__).parent / "linux"
_SOURCES: Final = ("*.c", "*.h", "Kbuild", "Makefile", "VERSION")
# What a module says of itself; fields end with a zero, and the next may begin with the same one.
_DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)(?=\0)")
_SOFTDEP: Final = re.compile(rb"\0softdep=([^\0]*)(?=\0)")
_ALIAS: Final = re.compile(rb"\0alias=([^\0]*)(?=\0)")

# The header of an image (Documentation/arch/x86/boot.rst): the magic number, and where the version text is.
_SETUP_BYTES: Final = 64 << 10
_SECTOR: Final = 0x200
_MAGIC: Final = b"HdrS"
_MAGIC_AT: Final = 0x202
_VERSION_AT: Final = 0x20E


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
    def named(
        cls, image: Path, modules: Path | None = None, module: Path | None = None, root: Path | None = None
    ) -> Kernel:
        """Return a kernel of the user's; ``root`` is a Debian to build our module in, if it has the kernel's headers.

        Its modules are looked for where distributions have them, unless they are named. Raises Unavailable if a file
        is not there.
        """
        for path in (image, *(path for path in (modules, module) if path)):
            if not path.exists():
                raise Unavailable(f"{path} does not exist")
        release = release_of(image)
        modules = modules or (_modules_beside(image, release) if release else None)
        release = release or (modules.name if modules else image.name)
        if root and not (root / "usr/src" / f"linux-headers-{release}").is_dir():
            root = None
        return cls(image.name, release, image, modules, root, module)

    def files_of(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the modules that ``names`` need, and those themselves, in the order to load: file name, contents.

        A driver that is part of the image is left out, and a module that another one would only like to have
        (a softdep) where this kernel does not have it. Raises Unavailable for a driver that it does not have.
        """
        found: dict[str, bytes] = {}

        def visit(name: str) -> None:
            if name in self._built_in or f"{name}.ko" in found:
                return
            path = self._loadable.get(name)
            if path is None:
                raise Unavailable(f"kernel {self.release} has no driver {name}")
            content = _read_module(path)
            for wanted in _soft_dependencies(content):
                module = wanted.replace("-", "_")
                for soft in [module] if self.has(module) else self._with_alias(wanted):
                    visit(soft)
            for needed in _words_of(_DEPENDS, content, b","):
                visit(needed.replace("-", "_"))
            found[f"{name}.ko"] = content

        for name in names:
            visit(name)
        return found

    def has(self, name: str) -> bool:
        """Whether the kernel has a driver, as a module or built in."""
        return name in self._built_in or name in self._loadable

    def on_demand(self, names: Iterable[str]) -> tuple[dict[str, bytes], dict[str, list[str]]]:
        """Return the modules of ``names`` that this kernel has as modules, with what they need: file name, contents;

        and by which names the kernel asks for each, with the files to load then, in order.
        """
        files: dict[str, bytes] = {}
        asked: dict[str, list[str]] = {}
        for name in names:
            if name not in self._loadable:
                continue
            needed = self.files_of([name])
            files |= needed
            for alias in [name, *_words_of(_ALIAS, needed[f"{name}.ko"], None)]:
                asked[alias] = list(needed)
        return files, asked

    def _with_alias(self, alias: str) -> list[str]:
        """Return the modules with an alias among those that a softdep may mean: ciphers and checksums."""
        return self._crypto_aliases.get(alias, [])

    @cached_property
    def _crypto_aliases(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, path in self._loadable.items():
            if {"crypto", "lib"} & {*path.parts}:
                for alias in _words_of(_ALIAS, _read_module(path), None):
                    found.setdefault(alias, []).append(name)
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
        """Build our module for this kernel, unless that was done with these sources; return the .ko file.

        Raises GuestError with the compiler's last lines, Unavailable for a kernel that came without headers.
        """
        if self.module:
            return self.module
        if self.root is None:
            raise Unavailable(
                f"the kit has no headers of {self.release} to build the module with: build {MODULE_SOURCE} for it"
                " (make KERNEL=RELEASE), and name nodma.ko with --module-file; or leave it out with --no-module"
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


def release_of(image: Path) -> str | None:
    """Return the release that a Linux image for x86 is of, as ``uname -r`` says; None if it does not say."""
    with image.open("rb") as file:
        header = file.read(_SETUP_BYTES)
    if header[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        return None
    begin = int.from_bytes(header[_VERSION_AT : _VERSION_AT + 2], "little") + _SECTOR
    words = header[begin:].partition(b"\0")[0].split()
    return words[0].decode(errors="replace") if words else None


def _modules_beside(image: Path, release: str) -> Path | None:
    """Return where the modules of a kernel are: beside the image, in the tree that it was unpacked with, or here."""
    above = image.absolute().parent
    places = (above, above.parent / "usr/lib/modules" / release, above.parent / "lib/modules" / release)
    for place in (*places, Path("/lib/modules") / release):
        if (place / "kernel").is_dir():
            return place
    return None


def _read_module(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def _words_of(field: re.Pattern[bytes], content: bytes, separator: bytes | None) -> list[str]:
    """Return what a module says of itself in one of its fields."""
    return [word.decode() for said in field.findall(content) for word in said.split(separator) if word]


def _soft_dependencies(content: bytes) -> list[str]:
    """Return what a module would like to have loaded before it: modules, or aliases of some."""
    found = []
    for said in _SOFTDEP.findall(content):
        before = False
        for word in said.decode().split():
            if word.endswith(":"):
                before = word == "pre:"
            elif before:
                found.append(word)
    return found


def _module_name(path: Path) -> str:
    """``virtio_blk`` of ``virtio-blk.ko.xz``."""
    return path.name.split(".")[0].replace("-", "_")
