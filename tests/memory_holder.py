"""A process that holds memory in the way that its first argument names; and one that examines it.

``holder.py WAY`` makes guest memory with a canary in it, starts ``holder.py WAY MEMORY WINDOW`` with the descriptors of
both, examines that process, and prints what was found. The holder knows of the canary only what it copies.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import platform
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

SIZE = 1 << 20
CANARY_AT = 3 * 4096
CANARY_BYTES = 32
PAGE = 4096

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

READ, WRITE, SHARED, PRIVATE, ANONYMOUS, POPULATE = 1, 2, 1, 2, 0x20, 0x8000
EXIT, USERFAULTFD = (60, 323) if platform.machine() == "x86_64" else (93, 282)
UNAVAILABLE = 77
"""The exit code of a holder that this kernel does not let be one."""
kept: list[object] = []


def checked(result: int) -> int:
    if result == -1:
        if ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
            sys.exit(UNAVAILABLE)
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def map_memory(fd: int = -1, *, flags: int = PRIVATE | ANONYMOUS, protection: int = READ | WRITE) -> int:
    address = libc.mmap(None, SIZE, protection, flags, fd, 0)
    assert address != ctypes.c_void_p(-1).value
    return int(address)


def copy_canary(memory: int, to: int) -> None:
    source = map_memory(memory, flags=SHARED, protection=READ)
    ctypes.memmove(to, source + CANARY_AT, CANARY_BYTES)
    libc.munmap(source, SIZE)


def make_ring(flags: int = 0, queues: int = 0) -> int:
    """Set up an io_uring; its queues are mapped, unless they are to lie in memory at ``queues``."""
    parameters = (ctypes.c_uint32 * 30)()
    parameters[2] = flags
    for offset, address in ((40 + 32, queues), (80 + 32, queues + SIZE // 2)):
        ctypes.c_uint64.from_buffer(parameters, offset).value = address if queues else 0
    ring = checked(libc.syscall(425, 4, parameters))
    if not queues:
        checked(libc.mmap(None, 2 * PAGE, READ | WRITE, SHARED | POPULATE, ring, 0))
    return ring


def in_a_thread(work: Callable[[], None]) -> None:
    done = threading.Event()

    def run() -> None:
        work()
        done.set()
        time.sleep(1000)

    threading.Thread(target=run, daemon=True).start()
    done.wait()


def nothing(memory: int, window: int) -> None:
    """What a device process has, and a mapping of the window that is split in two."""
    kept.extend([os.eventfd(0), select.epoll(), os.pipe(), socket.socketpair()])
    os.write(os.pipe()[1], b"not for anybody")
    in_a_thread(lambda: None)
    kept.append(mmap.mmap(os.open("/etc/passwd", os.O_RDONLY), 0, prot=READ))


def odd_name(memory: int, window: int) -> None:
    """A file whose name is neither UTF-8 nor fit for a terminal is mapped and open."""
    with tempfile.TemporaryDirectory() as directory:
        fd = os.open(os.fsencode(directory) + b"/\xff\x1b[2J \n\r.bin", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, PAGE)
        kept.append(mmap.mmap(fd, PAGE, prot=READ))


def mapped(memory: int, window: int) -> None:
    map_memory(memory, flags=SHARED)


def mapped_privately(memory: int, window: int) -> None:
    map_memory(memory, flags=PRIVATE, protection=READ)


def still_open(memory: int, window: int) -> None:
    kept.append(os.dup(memory))


def in_flight(memory: int, window: int) -> None:
    kept.extend(pair := socket.socketpair())
    socket.send_fds(pair[0], [b"x"], [memory])


def in_flight_to_a_listener(memory: int, window: int) -> None:
    listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{os.urandom(16).hex()}")
    listener.listen()
    client.connect(listener.getsockname())
    socket.send_fds(client, [b"x"], [memory])
    client.close()
    kept.append(listener)


def file_of_a_ring(memory: int, window: int) -> None:
    checked(libc.syscall(427, make_ring(), 2, (ctypes.c_int * 1)(memory), 1))


def buffer_of_a_ring(memory: int, window: int) -> None:
    address = map_memory(memory, flags=SHARED)
    checked(libc.syscall(427, make_ring(), 0, (ctypes.c_uint64 * 2)(address, 65536), 1))
    libc.munmap(address, SIZE)


def buffer_of_a_hidden_ring(memory: int, window: int) -> None:
    address = map_memory(memory, flags=SHARED)
    ring = make_ring()
    checked(libc.syscall(427, ring, 0, (ctypes.c_uint64 * 2)(address, 65536), 1))
    libc.munmap(address, SIZE)
    os.close(ring)


def ring_in_memory(memory: int, window: int) -> None:
    address = map_memory(memory, flags=SHARED)
    make_ring(1 << 14, address)  # IORING_SETUP_NO_MMAP
    libc.munmap(address, SIZE)


def harmless_ring(memory: int, window: int) -> None:
    """A ring such as a device might use: its disk registered, and a part of the window."""
    disk = os.open(sys.executable, os.O_RDONLY)
    ring = make_ring()
    checked(libc.syscall(427, ring, 2, (ctypes.c_int * 1)(disk), 1))
    checked(libc.syscall(427, ring, 0, (ctypes.c_uint64 * 2)(map_memory(window, flags=SHARED), 65536), 1))


def table_of_a_thread(memory: int, window: int) -> None:
    in_a_thread(lambda: checked(libc.unshare(0x400)) and None)  # CLONE_FILES


def child(memory: int, window: int) -> None:
    if os.fork() == 0:
        map_memory(memory, flags=SHARED)
        time.sleep(1000)


def orphan(memory: int, window: int) -> None:
    """A grandchild that nobody would know for one."""
    if (between := os.fork()) == 0:
        if os.fork() == 0:
            os.setsid()
            os.closerange(0, 3)
            map_memory(memory, flags=SHARED)
            time.sleep(20)
        os._exit(0)
    os.waitpid(between, 0)


def leader_ended(memory: int, window: int) -> None:
    """The first thread ends; another still maps the memory."""
    main = threading.main_thread().native_id

    def rest() -> None:
        map_memory(memory, flags=SHARED)
        os.close(memory)
        while Path(f"/proc/self/task/{main}/stat").read_text().rpartition(")")[2][:2] != " Z":
            time.sleep(0.01)
        print("ready", flush=True)
        time.sleep(1000)

    threading.Thread(target=rest, daemon=True).start()
    libc.syscall(EXIT, 0)  # exit(2): of this thread alone


def behind_a_guard(memory: int, window: int) -> None:
    copy = map_memory()
    copy_canary(memory, copy + 65536)
    if libc.madvise(copy, PAGE, 102):  # MADV_GUARD_INSTALL: Linux 6.13
        checked(libc.munmap(copy, PAGE))


def not_readable(memory: int, window: int) -> None:
    copy = map_memory()
    copy_canary(memory, copy + 65536)
    checked(libc.mprotect(copy, SIZE, 0))


def across_mappings(memory: int, window: int) -> None:
    """A copy whose halves lie in two mappings, side by side."""
    copy = map_memory()
    copy_canary(memory, copy + 65536 - CANARY_BYTES // 2)
    checked(libc.mprotect(copy + 65536, SIZE - 65536, READ))


def secret(memory: int, window: int) -> None:
    """A copy in memory that not even the kernel reads: memfd_secret."""
    fd = checked(libc.syscall(447, 0))
    os.ftruncate(fd, SIZE)
    copy = map_memory(fd, flags=SHARED)
    copy_canary(memory, copy)
    os.close(fd)


def spliced(memory: int, window: int) -> None:
    """The page of the canary waits in a pipe."""
    kept.append(pipe := os.pipe())
    os.splice(memory, pipe[1], PAGE, offset_src=CANARY_AT)


def called_a_window(memory: int, window: int) -> None:
    """Other memory, with the window's name."""
    other = os.memfd_create("nodma-window")
    os.ftruncate(other, SIZE)
    map_memory(other, flags=SHARED)
    os.close(other)


def memory_of_a_process(memory: int, window: int) -> None:
    kept.append(os.open(f"/proc/{os.getpid()}/mem", os.O_RDWR))


def unknown(memory: int, window: int) -> None:
    checked(libc.syscall(USERFAULTFD, 1))  # userfaultfd, of user mode only


def not_unix(memory: int, window: int) -> None:
    kept.append(socket.socket(socket.AF_INET))


WAYS = {
    way.__name__: way
    for way in (
        nothing,
        odd_name,
        harmless_ring,
        mapped,
        mapped_privately,
        still_open,
        in_flight,
        in_flight_to_a_listener,
        file_of_a_ring,
        buffer_of_a_ring,
        buffer_of_a_hidden_ring,
        ring_in_memory,
        table_of_a_thread,
        child,
        orphan,
        leader_ended,
        behind_a_guard,
        not_readable,
        across_mappings,
        secret,
        spliced,
        called_a_window,
        memory_of_a_process,
        unknown,
        not_unix,
    )
}


def hold(way: str, memory: int, window: int) -> None:
    address = map_memory(window, flags=SHARED)
    checked(libc.madvise(address + SIZE // 2, PAGE, 16))  # MADV_DONTDUMP: this splits the mapping in three
    WAYS[way](memory, window)
    os.close(memory)
    print("ready", flush=True)
    time.sleep(1000)


def examine_holder(way: str) -> dict[str, object]:
    from nodma.confinement import examine
    from nodma.procfs import FileIdentity

    memory, window = os.memfd_create("memory"), os.memfd_create("nodma-window")
    canary = os.urandom(CANARY_BYTES)
    for fd in (memory, window):
        os.ftruncate(fd, SIZE)
    os.pwrite(memory, canary, CANARY_AT)
    with subprocess.Popen(
        [sys.executable, __file__, way, str(memory), str(window)],
        pass_fds=[memory, window],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as holder:
        assert holder.stdout
        try:
            if holder.stdout.readline() != b"ready\n":
                sys.exit(holder.wait())
            found = examine(
                holder.pid,
                window=FileIdentity.of(window),
                memory=[FileIdentity.of(memory)],
                needles=[canary],
                settle=0.2,
            )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, 9)
    return {
        "findings": found.findings,
        "found": canary in found.found,
        "memory_mapped": len(found.memory_mapped),
        "memory_open": len(found.memory_open),
        "elsewhere": len(found.elsewhere),
        "foreign": len(found.foreign),
        "opaque": len(found.opaque),
        "processes": found.processes,
        "unread": found.unread_bytes,
        "names": [mapped.name for mapped in found.maps] + [item.target for item in found.descriptors],
    }


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(examine_holder(sys.argv[1])))
    else:
        hold(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
