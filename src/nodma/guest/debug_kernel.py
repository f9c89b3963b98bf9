"""The debug kernel: Debian's 6.12 with KASAN, lockdep and their like, built once and kept beside the kit.

It reports what a distribution's kernel lets pass: a use after free, a lock taken in the wrong order, a mapping that is
never unmapped, a timer that is freed while it runs. Whatever must never happen in a guest is looked for with it. It is
some five times slower than the kit's other kernels.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Final

from nodma.errors import Unavailable
from nodma.guest.chroot import run_long_inside
from nodma.guest.debian import Apt, Progress, host_mirror, unpack
from nodma.guest.kernel import Kernel
from nodma.guest.kit_directory import locked

NAME: Final = "debug"
"""What the kit calls it."""

CONFIG: Final = Path(__file__).parent / "debug-kernel.config"
_SCRIPT: Final = Path(__file__).parent / "debug-kernel.sh"
_PACKAGES: Final = (
    "base-files",
    "bash",
    "bc",
    "bison",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "flex",
    "gcc-14",
    "grep",
    "gzip",
    "libc6-dev",
    "libelf-dev",
    "linux-source-6.12",
    "make",
    "mawk",
    "perl",
    "sed",
    "tar",
    "xz-utils",
)

SLOWNESS: Final = 8.0
"""How much longer a guest may take on it than on the kit's other kernels, emulated."""

_APPEND: Final = (
    "dma_debug_entries=65536 watchdog_thresh=60 workqueue.watchdog_thresh=120 rcupdate.rcu_cpu_stall_timeout=120"
)
"""Emulated on a busy machine, a processor may stand still for a while, and no fault of the guest's is it."""

_SECONDS: Final = 3 * 3600.0
_STEPS: Final = 2100
"""Lines that the build prints, about: they measure its progress."""

_STEP: Final = re.compile(r"  [A-Z]+ +\S")

REPORTS: Final = re.compile(
    r"KASAN|UBSAN|ODEBUG: (?!selftest passed)|kmemleak: \d+ new|unreferenced object"
    r"|\bBUG:|kernel BUG|WARNING:|Oops|general protection fault|refcount_t:|corruption\."
    r"|DMA-API: (?!preallocated|debugging enabled)"
    r"|possible (?:circular|recursive) locking|possible irq lock|inconsistent lock state|suspicious RCU"
    r"|INFO: task .* blocked|INFO: trying to register non-static key|INFO: rcu.* stall|rcu: INFO: .*stall"
    r"|soft lockup|workqueue lockup"
)
"""What begins a report of something that must not happen, in a console of any kernel."""


def reports(console: str) -> list[str]:
    """Return the lines of a guest's console that begin a report: of KASAN, lockdep, DMA-API, WARN and their like."""
    return [line for line in console.splitlines() if REPORTS.search(line)]


def find(directory: Path) -> Kernel:
    """Return the debug kernel of the kit in ``directory``. Raises Unavailable if it was not built."""
    built = _place(directory)
    if not built.exists():
        raise Unavailable("the kit has no debug kernel: build it with `nodma guest setup --debug-kernel`")
    release = (built / "release").read_text().strip()
    return Kernel(
        NAME, release, built / "vmlinuz", built / "modules", built / "root", append=_APPEND, slowness=SLOWNESS
    )


def build(directory: Path, *, mirror: str | None = None, progress: Progress = lambda *_: None) -> Kernel:
    """Build the debug kernel beside the kit in ``directory``, unless it is there; return it.

    A build that was interrupted goes on where it was. It takes a quarter of an hour of processor time and, while it
    lasts, 3 GB. Raises GuestError if it fails, Unavailable if this machine cannot do it.
    """
    built = _place(directory)
    with locked(directory, NAME, lambda: progress("waiting for another build of the debug kernel", 0.0)):
        if not built.exists():
            _build(directory, built.with_name(f"{built.name}.partial"), mirror or host_mirror(), progress)
            for old in directory.glob(f"{NAME}-*"):
                if old != built.with_name(f"{built.name}.partial"):
                    shutil.rmtree(old)
            built.with_name(f"{built.name}.partial").rename(built)
    return find(directory)


def remove(directory: Path) -> None:
    """Remove the debug kernel of the kit in ``directory``, and what a build left."""
    for place in directory.glob(f"{NAME}-*"):
        shutil.rmtree(place)


def _place(directory: Path) -> Path:
    """Return where a kernel made of this configuration, by these steps, belongs."""
    made_of = repr(_PACKAGES).encode() + CONFIG.read_bytes() + _SCRIPT.read_bytes()
    return directory / f"{NAME}-{hashlib.sha256(made_of).hexdigest()[:12]}"


def _build(directory: Path, work: Path, mirror: str | None, progress: Progress) -> None:
    root, place = work / "root", work / "build"
    if not root.exists():
        if mirror is None:
            raise Unavailable("this machine's apt knows no Debian mirror: name one with --mirror URL")
        progress("fetching Debian's lists of packages", 0.0)
        apt = Apt(directory / "apt", mirror)
        apt.update()
        unpack(apt.download(_PACKAGES, progress), root, progress)
    place.mkdir(exist_ok=True)
    for path in (CONFIG, _SCRIPT):
        shutil.copy(path, place)
    steps = 0

    def on_line(line: str) -> None:
        nonlocal steps
        steps += bool(_STEP.match(line))
        progress("building the debug kernel", min(steps / _STEPS, 0.99))

    what = "building the debug kernel"
    command = ["sh", f"/build/{_SCRIPT.name}"]
    log = work / "build.log"
    run_long_inside(root, command, what, binds={place: "/build"}, log=log, seconds=_SECONDS, on_line=on_line)
    kernel = place / "kernel"
    release = (kernel / "release").read_text().strip()
    (kernel / "headers").rename(root / "usr/src" / f"linux-headers-{release}")
    for path in kernel.iterdir():
        path.rename(work / path.name)
    for source in (root / "usr/src").glob("linux-source-*"):
        source.unlink()
    shutil.rmtree(place)
