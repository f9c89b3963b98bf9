"""What a guest is to do: a script, what it needs, and the initramfs that brings all of it along."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from nodma.errors import Unavailable, UsageError
from nodma.guest.command import run
from nodma.guest.cpio import Archive, Sink, Tree
from nodma.guest.kernel import Kernel
from nodma.guest.kit_directory import locked
from nodma.guest.qemu import library_path, loader
from nodma.guest.tools import Tools

INIT: Final = Path(__file__).parent / "init.sh"
OUR_MODULE: Final = "nodma"

PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "fio": ("usr/bin/fio",),
    "e2fsprogs": ("usr/sbin/mke2fs", "usr/sbin/e2fsck"),
    "python": ("usr/bin/python3.13",),
    "nodma": ("usr/bin/python3.13",),
}
"""What a job can ask for: programs of the kit's Debian, with the libraries that they need; and nodma itself."""

FILE_SYSTEMS: Final = ("ext4", "vfat", "nls_cp437", "nls_iso8859_1", "nls_ascii", "nls_utf8", "isofs", "overlay")
"""What comes along where it is not built in: the first is loaded, the others when something is mounted."""

_TREES: Final[Mapping[str, tuple[str, ...]]] = {"python": ("usr/lib/python3.13",), "nodma": ("usr/lib/python3.13",)}
_LINKS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "e2fsprogs": (("usr/sbin/mkfs.ext4", "mke2fs"),),
    "python": (("usr/bin/python3", "python3.13"),),
    "nodma": (("usr/bin/python3", "python3.13"),),
}
OURSELVES: Final = "nodma"
_NEEDED: Final = ("click", "rich", "markdown_it", "mdurl")
"""What nodma's commands import; all of it is Python."""

_PACKAGES: Final = "usr/lib/python3/dist-packages"
_START: Final = b'#!/bin/sh\nexec python3 -m nodma "$@"\n'
_LEFT_OUT: Final = ("__pycache__", "test", "idlelib", "turtledemo", "ensurepip", "lib2to3", "pydoc_data")


@dataclass(frozen=True)
class Job:
    """A script for busybox's shell, and what it finds in the guest.

    ``drivers`` are loaded before it runs, in this order ("nodma" is ours; options may follow a name), with what they
    need, the PCI transport among it. ``programs`` are of those that the kit carries. ``files`` come to lie in /job.
    What the script puts into /out is handed back. Without a script, a shell is started on the console.

    With ``root``, a PCI function as in ``0000:00:05.0``, the initramfs only loads the drivers; the root file system is
    the disk of that function, and the script is found there (see :meth:`root_file_system`).
    """

    script: str | None
    drivers: Sequence[str] = ()
    programs: Sequence[str] = ()
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    root: str | None = None

    def initramfs(self, path: Path, kernel: Kernel, tools: Tools) -> None:
        """Write the initramfs for ``kernel`` to ``path``.

        Raises UsageError for a program or driver that is not available, GuestError if our module cannot be built.
        """
        with path.open("wb") as file:
            if self.root is None:
                for program in self.programs:
                    with _layer(tools, program).open("rb") as layer:
                        shutil.copyfileobj(layer, file)
            archive = Archive(file)
            self._base(archive, tools)
            if self.root is not None:
                archive.add("job/root", self.root.encode())
            else:
                self._work(archive)
            order = []
            for name, content, options in self._drivers(kernel, tools.cache):
                archive.add(f"job/drivers/{name}", content)
                order.append(f"{name} {options}\n")
            archive.add("job/order", "".join(order).encode())
            modules, asked = kernel.on_demand(FILE_SYSTEMS)
            for name, content in modules.items():
                archive.add(f"job/modules/{name}", content)
            index = "".join(f"{alias} {' '.join(files)}\n" for alias, files in asked.items())
            archive.add("job/modules/index", index.encode())
            archive.close()

    def root_file_system(self, directory: Path, tools: Tools) -> None:
        """Write into ``directory`` what the root file system of a guest with ``root`` must hold. Raises UsageError."""
        tree = Tree(directory)
        for program in self.programs:
            _write_program(tree, _debian(tools, program), program)
        for name in ("proc", "sys", "dev", "tmp", "out", "mnt", "run"):
            tree.directory(name)
        self._base(tree, tools)
        self._work(tree)
        tree.add("job/order", b"")
        tree.add("job/modules/index", b"")

    def _base(self, sink: Sink, tools: Tools) -> None:
        sink.add("init", INIT, executable=True)
        sink.add("bin/busybox", tools.busybox, executable=True)
        sink.directory("job")

    def _work(self, sink: Sink) -> None:
        if self.script is not None:
            sink.add("job/run", self.script.encode())
        for name, content in self.files.items():
            sink.add(f"job/{name}", content)

    def _drivers(self, kernel: Kernel, cache: Path) -> Iterable[tuple[str, bytes, str]]:
        """Yield file name, contents and options of each driver to load."""
        done = set()
        usual = [name for name in FILE_SYSTEMS[:1] if kernel.has(name)]
        for wanted in [*self.drivers, *usual]:
            name, _, options = wanted.partition(" ")
            if name == OUR_MODULE:
                needed = kernel.files_of(["virtio_pci"])
                needed["nodma.ko"] = kernel.build_module(cache).read_bytes()
            else:
                needed = kernel.files_of(["virtio_pci", name] if name.startswith("virtio_") else [name])
            for file, content in needed.items():
                if file not in done:
                    done.add(file)
                    yield file, content, options if file == f"{name}.ko" else ""


def _debian(tools: Tools, program: str) -> Path:
    """Return the Debian that has a program. Raises UsageError."""
    if program not in PROGRAMS:
        raise UsageError(f"the kit does not carry {program!r}; it has {', '.join(PROGRAMS)}")
    if tools.root is None:
        raise Unavailable(f"{program} is for guests with the kit: run `nodma guest setup`")
    return tools.root


def _layer(tools: Tools, program: str) -> Path:
    """Return the archive of a program and all that it needs; made once."""
    root = _debian(tools, program)
    recipe = hashlib.sha256(repr((PROGRAMS[program], _TREES.get(program), _LINKS.get(program))).encode())
    if program == OURSELVES:
        for name, path in sorted(our_files().items()):
            recipe.update(name.encode() + path.read_bytes())
    path = tools.cache / "layers" / f"{program}-{recipe.hexdigest()[:8]}.cpio"
    with locked(tools.cache, "layers"):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            growing = path.with_suffix(".partial")
            with growing.open("wb") as file:
                archive = Archive(file)
                _write_program(archive, root, program)
                archive.close()
            growing.rename(path)
    return path


def _write_program(sink: Sink, root: Path, program: str) -> None:
    files = {root / name for name in PROGRAMS[program]}
    for tree in _TREES.get(program, ()):
        files |= {path for path in (root / tree).rglob("*") if path.is_file() and not {*path.parts} & {*_LEFT_OUT}}
    binaries = [path for path in files if path.suffix == ".so" or path.parent.name in ("bin", "sbin")]
    for name, target in _libraries(root, binaries).items():
        sink.add(name, target, executable=True)
    for path in sorted(files):
        sink.add(str(path.relative_to(root)), path, executable=True)
    for name, target_name in _LINKS.get(program, ()):
        sink.link(name, target_name)
    if program == OURSELVES:
        for name, path in our_files().items():
            sink.add(f"{_PACKAGES}/{name}", path)
        sink.add("usr/bin/nodma", _START, executable=True)
    sink.link("lib64", "usr/lib64")


def our_files() -> dict[str, Path]:
    """Return nodma and what it needs, as files of a guest's Python: what is compiled runs interpreted there."""
    found = {}
    for package in (OURSELVES, *_NEEDED):
        spec = find_spec(package)
        assert spec
        assert spec.origin
        place = Path(spec.origin).parent
        for path in place.rglob("*"):
            wanted = path.suffix == ".py" or path.name == "VERSION"
            if wanted and path.is_file() and not {*path.parts} & {*_LEFT_OUT}:
                found[f"{package}/{path.relative_to(place)}"] = path
    return found


def _libraries(root: Path, binaries: Iterable[Path]) -> dict[str, Path]:
    """Ask the dynamic loader which libraries programs need: where each belongs, and its file."""
    found = {"usr/lib64/ld-linux-x86-64.so.2": loader(root).resolve()}
    for binary in binaries:
        listed = run(
            [loader(root), "--library-path", library_path(root), "--list", binary], f"looking at {binary.name}"
        )
        for line in listed.splitlines():
            _, arrow, rest = line.partition(" => ")
            place = Path(rest.split(" (")[0])
            if arrow and place.is_relative_to(root):
                found[str(place.relative_to(root))] = place.resolve()
    return found
