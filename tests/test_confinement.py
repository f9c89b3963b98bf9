"""The examination of a device process: blind to nothing that ``/proc`` shows, and never wrong about anything else.

Each way to hold memory is tried by a real process, ``memory_holder.py``; as root, and as an ordinary user.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodma import confinement
from nodma.confinement import examine
from nodma.errors import Unavailable
from nodma.procfs import Descriptor, FileIdentity, MappedRange, ProcessView, Ring, Search
from nodma.window import Window

HOLDER = Path(__file__).parent / "memory_holder.py"
UNAVAILABLE = 77
ORDINARY_USER = ("unshare", "--user") if os.geteuid() == 0 else ()
"""In a user namespace without any mapping, root's processes keep their user, and lose all privileges."""


@pytest.fixture(params=["root", "ordinary user"])
def user(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What to begin a command with, for it to run as that user."""
    if request.param == "root":
        if os.geteuid():
            pytest.skip("these tests do not run as root")
        return ()
    if subprocess.run([*ORDINARY_USER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine has no user namespaces")
    return ORDINARY_USER


def examine_holder(way: str, user: tuple[str, ...] = ()) -> dict[str, Any]:
    done = subprocess.run(
        [*user, sys.executable, str(HOLDER), way], capture_output=True, text=True, timeout=100, check=False
    )
    if done.returncode == UNAVAILABLE:
        pytest.skip("this kernel does not let a process hold memory in this way")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("way", ["nothing", "odd_name", "harmless_ring"])
def test_what_a_device_process_may_have_is_no_finding(way: str, user: tuple[str, ...]) -> None:
    """Among it: a window whose mapping is in three parts, names that are not text, a ring with a part of the window."""
    found = examine_holder(way, user)
    assert (found["findings"], found["found"]) == ([], False)
    assert all(name.isprintable() for name in found["names"])
    assert sum(name.startswith("/memfd:nodma-window") for name in found["names"]) >= 3


@pytest.mark.parametrize(
    ("way", "kind", "words"),
    [
        ("mapped", "memory_mapped", "is mapped rw-s"),
        ("mapped_privately", "memory_mapped", "is mapped r--p"),
        ("still_open", "memory_open", "is open as descriptor"),
        ("table_of_a_thread", "memory_open", "is open as descriptor"),
        ("in_flight", "opaque", "to which 1 descriptors are in flight"),
        ("in_flight_to_a_listener", "opaque", "to which 1 descriptors are in flight"),
        ("file_of_a_ring", "opaque", "has the file /memfd:memory (deleted) registered"),
        ("buffer_of_a_ring", "opaque", "has a buffer of 65536 bytes"),
        ("buffer_of_a_hidden_ring", "opaque", "the kernel keeps 65536 bytes pinned for it, 0 of them registered"),
        ("buffer_of_a_hidden_ring", "opaque", "an io_uring is mapped whose descriptor is not open"),
        ("ring_in_memory", "opaque", "is not mapped: its queues lie in other memory"),
        ("child", "memory_mapped", "is mapped rw-s"),
        ("orphan", "elsewhere", "maps it"),
        ("leader_ended", "memory_mapped", "is mapped rw-s"),
        ("secret", "opaque", "4096 bytes of /secretmem (deleted) cannot be read"),
        ("secret", "foreign", "/secretmem (deleted) is mapped rw-s"),
        ("called_a_window", "foreign", "/memfd:nodma-window (deleted) is mapped rw-s"),
        ("memory_of_a_process", "opaque", "a file of /proc"),
        ("unknown", "opaque", "[userfaultfd], which is not known to be harmless"),
        ("not_unix", "opaque", "which is not a UNIX socket"),
    ],
)
def test_what_holds_memory_is_found(way: str, kind: str, words: str, user: tuple[str, ...]) -> None:
    found = examine_holder(way, user)
    assert found[kind] > 0
    assert any(words in finding for finding in found["findings"]), found["findings"]


@pytest.mark.parametrize("way", ["behind_a_guard", "not_readable", "across_mappings", "spliced", "child"])
def test_a_copy_is_found(way: str, user: tuple[str, ...]) -> None:
    """Beyond a page that cannot be read, where nobody may read, across mappings, in a pipe, in a child."""
    assert examine_holder(way, user)["found"]


def test_files_of_other_file_systems_with_the_same_inode_number_are_no_finding(tmp_path: Path) -> None:
    """Each tmpfs counts from the start. Of three with one inode number, one is guest memory, one open, one mapped."""
    if os.geteuid():
        pytest.skip("only root may mount")
    script = f"""
set -e
for name in memory opened mapped; do
    mkdir {tmp_path}/$name; mount -t tmpfs tmpfs {tmp_path}/$name; truncate -s 65536 {tmp_path}/$name/file
done
exec {sys.executable} -c '
import mmap, os, subprocess, sys
from nodma.confinement import examine
from nodma.procfs import FileIdentity
memory, opened, mapped = (os.open(f"{tmp_path}/{{name}}/file", os.O_RDWR) for name in ("memory", "opened", "mapped"))
assert len({{os.fstat(fd).st_ino for fd in (memory, opened, mapped)}}) == 1
os.pwrite(memory, b"the canary", 0)
program = f"import mmap; kept = mmap.mmap({{mapped}}, 0, prot=1); print(flush=True); input()"
holder = subprocess.Popen([sys.executable, "-c", program], pass_fds=[opened, mapped], stdin=-1, stdout=-1)
holder.stdout.readline()
its = FileIdentity.of(memory)
found = examine(holder.pid, window=FileIdentity(0, 1), memory=[its], needles=[b"the canary"], settle=0)
holder.kill()
print(found.findings, len(found.found), sum(item.file.inode == its.inode for item in found.descriptors) > 1)
'
"""
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[] 0 True\n", "")


class Crafted(ProcessView):
    """A process of which ``/proc`` says what a test wants it to."""

    def __init__(self, maps: list[MappedRange], descriptors: list[Descriptor], pinned: int = 0) -> None:
        super().__init__(1)
        self._maps, self._descriptors, self._pinned = maps, descriptors, pinned

    def maps(self) -> list[MappedRange]:
        return self._maps

    def descriptors(self) -> list[Descriptor]:
        return self._descriptors

    def pinned(self) -> int:
        return self._pinned

    def search(self, *needles: bytes) -> Search:
        return Search(frozenset(), 0, ())


WINDOW, MEMORY = FileIdentity(1, 1027), FileIdentity(1, 1028)
MAPPED = MappedRange(0x1000, 0x5000, "rw-s", WINDOW, "/memfd:nodma-window (deleted)")
OPEN = Descriptor(3, 1, "/disk.img", FileIdentity(0xFE00, 12), stat.S_IFREG | 0o600, 0)


def findings(
    *, maps: list[MappedRange] | None = None, descriptors: list[Descriptor] | None = None, pinned: int = 0
) -> list[str]:
    view = Crafted(maps or [MAPPED], descriptors or [], pinned)
    return confinement._look([view], WINDOW, frozenset({MEMORY}), [b"x"]).findings


def test_an_inode_number_alone_says_nothing() -> None:
    """As on a machine just booted: every kind of file has the number of guest memory, on a device of its own."""
    number = MEMORY.inode
    others = [
        Descriptor(4, 1, f"pipe:[{number}]", FileIdentity(15, number), stat.S_IFIFO | 0o600, 0),
        Descriptor(5, 1, f"socket:[{number}]", FileIdentity(9, number), stat.S_IFSOCK | 0o777, 0, queued=0),
        Descriptor(6, 1, "anon_inode:[eventfd]", FileIdentity(16, number), 0o600, 0),
        replace(OPEN, file=FileIdentity(0xFE00, number)),
    ]
    library = replace(MAPPED, permissions="r-xp", name="/lib/libc.so.6", file=FileIdentity(0xFE00, number))
    assert findings(maps=[MAPPED, library], descriptors=others) == []
    assert len(findings(maps=[replace(library, file=MEMORY)], descriptors=[replace(OPEN, file=MEMORY)])) == 2


@pytest.mark.parametrize(
    ("target", "mode", "special", "fine"),
    [
        ("/dev/null", stat.S_IFCHR, os.makedev(1, 3), True),
        ("/dev/urandom", stat.S_IFCHR, os.makedev(1, 9), True),
        ("/dev/pts/3", stat.S_IFCHR, os.makedev(136, 3), True),
        ("/dev/mem", stat.S_IFCHR, os.makedev(1, 1), False),
        ("/dev/kvm", stat.S_IFCHR, os.makedev(10, 232), False),
        ("/dev/vfio/7", stat.S_IFCHR, os.makedev(511, 0), False),
        ("/dev/sda", stat.S_IFBLK, os.makedev(8, 0), True),
        ("/srv/a:b/log", stat.S_IFREG, 0, True),
        ("anon_inode:[eventpoll]", 0, 0, True),
        ("anon_inode:inotify", 0, 0, True),
        ("anon_inode:[kvm-vm]", 0, 0, False),
        ("anon_inode:[made-up-tomorrow]", 0, 0, False),
        ("/dmabuf:", 0, 0, False),
        ("mnt:[4026531841]", stat.S_IFREG, 0, False),
        ("/memfd:other (deleted)", stat.S_IFREG, 0, False),
        ("/dev/zero (deleted)", stat.S_IFREG, 0, False),
        ("/SYSV00000000 (deleted)", stat.S_IFREG, 0, False),
    ],
)
def test_only_known_kinds_of_descriptors_pass(target: str, mode: int, special: int, fine: bool) -> None:
    assert (findings(descriptors=[replace(OPEN, target=target, mode=mode, special=special)]) == []) == fine


@pytest.mark.parametrize(
    ("name", "permissions", "inode", "fine"),
    [
        ("", "rw-p", 0, True),
        ("[heap]", "rw-p", 0, True),
        ("[anon:arena]", "---p", 0, True),
        ("[vsyscall]", "--xp", 0, True),
        ("/usr/lib/gconv/gconv-modules.cache", "r--s", 5, True),
        ("/usr/lib/libc.so.6", "rw-p", 5, True),
        ("/srv/file", "rw-s", 5, False),
        ("/dev/zero", "rw-p", 5, True),
        ("/dev/zero (deleted)", "rw-s", 5, False),
        ("/dev/shm/memory", "r--p", 5, False),
        ("/dev/mem", "r--s", 5, False),
        ("/memfd:other (deleted)", "r--p", 5, False),
        ("[anon_shmem:x]", "rw-s", 5, False),
        ("anon_inode:[kvm-vcpu:0]", "rw-s", 5, False),
    ],
)
def test_only_known_kinds_of_mappings_pass(name: str, permissions: str, inode: int, fine: bool) -> None:
    mapped = MappedRange(0x9000, 0xA000, permissions, FileIdentity(7 if inode else 0, inode), name)
    assert (findings(maps=[MAPPED, mapped]) == []) == fine


def test_what_an_io_uring_holds_must_be_known() -> None:
    ring = FileIdentity(16, 77)
    queues = MappedRange(0xA000, 0xC000, "rw-s", ring, "anon_inode:[io_uring]")

    def with_ring(listed: bool = True, files: tuple[str, ...] = (), buffers: tuple[tuple[int, int], ...] = ()) -> int:
        held = Descriptor(7, 1, "anon_inode:[io_uring]", ring, 0o600, 0, ring=Ring(listed, files, buffers))
        return len(findings(maps=[MAPPED, queues], descriptors=[OPEN, held], pinned=sum(size for _, size in buffers)))

    assert with_ring(files=("/disk.img",), buffers=((0x1000, 0x4000),)) == 0
    assert with_ring(listed=False) == 1
    assert with_ring(files=("disk.img",)) == 1  # older kernels give the last part of a name only
    assert with_ring(buffers=((0x4000, 0x2000),)) == 1  # it begins in the window, and goes beyond
    assert findings(pinned=4096) == ["the kernel keeps 4096 bytes pinned for it, 0 of them registered in an io_uring"]


def test_a_descriptor_that_just_arrived_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VMM may send guest memory at any moment; what the process then closes is no finding."""
    looks = []
    real = confinement._look

    def look(*arguments: Any) -> confinement.Examination:
        looks.append(real(*arguments))
        if len(looks) < 3:
            looks[-1].memory_open.append("guest memory is open as descriptor 99")
        return looks[-1]

    monkeypatch.setattr(confinement, "_look", look)
    with subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        found = examine(child.pid, window=WINDOW, memory=[MEMORY], needles=[b"x"])
        child.kill()
    assert len(looks) == 3
    assert found.memory_open == []


def test_the_process_goes_on_afterwards() -> None:
    with (
        Window.create(65536) as window,
        subprocess.Popen([sys.executable, "-c", "print(input())"], stdin=-1, stdout=-1, text=True) as child,
    ):
        for _ in range(3):
            examine(child.pid, window=FileIdentity.of(window.fd), memory=[], needles=[b"x"], settle=0)
        out, _ = child.communicate("still here", timeout=20)
    assert out == "still here\n"


def test_a_process_that_has_ended_is_no_proof() -> None:
    with subprocess.Popen(["true"]) as child:
        while ProcessView(child.pid).states() != {"Z"}:
            time.sleep(0.001)
        with pytest.raises(Unavailable, match="cannot be inspected: it has ended"):
            examine(child.pid, window=WINDOW, memory=[], needles=[b"x"])


def test_a_process_that_is_not_auditable_is_no_proof() -> None:
    program = "from nodma.hosting.lockdown import lock_down as f; f(auditable=False); print(flush=True); input()"
    script = f"""
import subprocess, sys
from nodma.confinement import examine
from nodma.procfs import FileIdentity
child = subprocess.Popen([sys.executable, "-c", {program!r}], stdin=-1, stdout=-1)
child.stdout.readline()
try:
    examine(child.pid, window=FileIdentity(0, 1), memory=[], needles=[b"x"])
except Exception as error:
    print(error)
child.kill()
"""
    command = [*ORDINARY_USER, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "cannot be inspected: Permission denied" in done.stdout, done.stderr
    assert "--auditable" in done.stdout
