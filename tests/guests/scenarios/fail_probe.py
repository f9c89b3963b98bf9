"""Runs in a guest with the debug kernel: fail each allocation of a probe in its turn, until there are no more of them.

Of the driver on the virtio device, of the one on the PCI function, and of loading the module. After each, what came of
it is undone. Prints how many allocations there were.
"""

import ctypes
import os
import sys
from pathlib import Path

FINIT_MODULE = 313
FUNCTION = "0000:00:05.0"
PCI = Path("/sys/bus/pci/devices", FUNCTION)
PCI_DRIVER = Path("/sys/bus/pci/drivers/virtio-pci")
VIRTIO_DRIVER = Path("/sys/bus/virtio/drivers/virtio_blk")

libc = ctypes.CDLL(None, use_errno=True)
fail_nth = os.open(f"/proc/self/task/{os.getpid()}/fail-nth", os.O_RDWR)


def write(path, text):
    path.write_text(text)


def device():
    (found,) = PCI.glob("virtio[0-9]*")
    return found


def unbind_virtio():
    for found in PCI.glob("virtio[0-9]*"):
        if (found / "driver").exists():
            write(VIRTIO_DRIVER / "unbind", found.name)


def unbind_function():
    if (PCI / "driver").exists():
        write(PCI_DRIVER / "unbind", FUNCTION)


def unload():
    if Path("/sys/module/nodma").exists():
        unbind_virtio()
        assert libc.delete_module(b"nodma", os.O_NONBLOCK) == 0, os.strerror(ctypes.get_errno())


def each(name, undo, attempt):
    number = 0
    while True:
        number += 1
        os.pwrite(fail_nth, str(number).encode(), 0)
        succeeded = attempt()
        left = int(os.pread(fail_nth, 16, 0))
        os.pwrite(fail_nth, b"0", 0)
        undo()
        if left:
            break
    print(f"{name}\t{number - 1}\t{succeeded}", flush=True)
    print(f"FAILED EACH OF {number - 1}: {name}", file=sys.stderr, flush=True)


def written(path, text):
    """Return an attempt to write: the file is open before anything fails."""
    file = os.open(path, os.O_WRONLY)

    def attempt():
        try:
            return os.pwrite(file, text.encode(), 0) == len(text)
        except OSError:
            return False

    return attempt


unbind_virtio()
each("virtio device", unbind_virtio, written(VIRTIO_DRIVER / "bind", device().name))
unbind_function()
each("PCI function", unbind_function, written(PCI_DRIVER / "bind", FUNCTION))
unload()
module = os.open("/job/drivers/nodma.ko", os.O_RDONLY)
each("module", unload, lambda: libc.syscall(FINIT_MODULE, module, b"", 0) == 0)
