"""What is there to run guests with, what is not, and why: each answer was tried, not guessed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nodma.errors import NodmaError
from nodma.guest import chroot
from nodma.guest.accelerator import ACCELERATORS, problem_of
from nodma.guest.debian import host_mirror, tools_problem
from nodma.guest.kit import Kit, short_name
from nodma.guest.kit_directory import kit_directory
from nodma.guest.qemu import OLDEST, PROGRAM, Qemu


@dataclass(frozen=True, slots=True)
class Finding:
    """``needed`` findings must be fine for guests to run."""

    what: str
    fine: bool
    says: str
    needed: bool = False


def examine(given: Path | None = None) -> Iterator[Finding]:
    """Look at this machine; findings come as they are made."""
    yield _qemu_on_path()
    mirror, problem = host_mirror(), tools_problem()
    yield Finding(
        "packages",
        mirror is not None and problem is None,
        problem or mirror or "this machine's apt knows no Debian mirror: setup needs --mirror",
    )
    problem = chroot.problem()
    yield Finding(
        "namespaces", problem is None, problem or "a program ran in new ones; the kernel module is built that way"
    )
    directory = kit_directory(given)
    try:
        kit = Kit.open(given)
        qemu = kit.qemu
    except NodmaError as error:
        yield Finding("kit", False, str(error), needed=True)
        return
    yield Finding("kit", True, f"in {directory}", needed=True)
    shown = ".".join(map(str, qemu.version))
    yield Finding(
        "QEMU", qemu.problem is None, f"{shown}, from {qemu.origin}" if not qemu.problem else qemu.problem, needed=True
    )
    for number, record in enumerate(kit.kernels):
        kernel = kit.kernel(record.release)
        if number == 0 and qemu.problem is None:
            problems = {name: problem_of(name, kit.tools, kernel) for name in ACCELERATORS}
            for name, problem in problems.items():
                yield Finding(name.upper(), not problem, problem or "a guest ran with it", needed=False)
            if all(problems.values()):
                yield Finding("guests", False, "no guest runs, neither with KVM nor without", needed=True)
        yield Finding(
            f"kernel {short_name(record)}", kernel.image.exists(), f"{record.release}, from {record.suite}", needed=True
        )
        try:
            module = kernel.build_module(kit.directory)
            yield Finding("its module", True, str(module), needed=True)
        except NodmaError as error:
            yield Finding("its module", False, str(error), needed=True)


def _qemu_on_path() -> Finding:
    path = shutil.which(PROGRAM)
    if path is None:
        return Finding("QEMU on PATH", False, f"no {PROGRAM}; setup fetches one")
    qemu = Qemu((path,), "PATH")
    if qemu.problem:
        oldest = ".".join(map(str, OLDEST))
        return Finding("QEMU on PATH", False, f"{path}: {qemu.problem}; setup fetches {oldest} or newer")
    return Finding("QEMU on PATH", True, f"{path}, {'.'.join(map(str, qemu.version))}")
