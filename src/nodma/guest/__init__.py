"""Real guests: QEMU, distribution kernels, and a kernel module that has them bounce through a BAR.

::

    kit = Kit.open()                                  # what `nodma guest setup` fetched
    job = Job("dd if=$(disk) of=/dev/null bs=1M", drivers=["nodma", "virtio_blk"])
    with Machine(kit.tools, kit.kernel("6.12"), job, functions=[socket], directory=work) as machine:
        outcome = machine.finish(seconds=60)          # its exit status, its files, its console

It knows a device by its socket alone; nothing here is loaded by a device process.
"""

from nodma.guest.job import Job
from nodma.guest.kernel import Kernel
from nodma.guest.kit import Kit
from nodma.guest.machine import Machine, Outcome, Shape
from nodma.guest.qemu import Qemu
from nodma.guest.tools import Tools

__all__ = ["Job", "Kernel", "Kit", "Machine", "Outcome", "Qemu", "Shape", "Tools"]
