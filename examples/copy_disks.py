"""Copy a disk to another through the pool that they share: what one device read, the other writes from the same slots.

Serve them:  nodma serve --slot --share blk,image=a.img,socket=a.sock blk,image=b.img,socket=b.sock
Copy them:   python copy_disks.py a.sock b.sock
"""

import sys

from nodma.driver import BlockDisk, Filled, Ticket, open_slot

PIECE = 512 << 10


def copy(source: BlockDisk, target: BlockDisk, *, depth: int = 4) -> int:
    """Copy all of ``source`` to the beginning of ``target``, up to ``depth`` pieces at once; gives the bytes."""
    piece = min(PIECE, source.max_request, target.max_request)
    reading: dict[Ticket, int] = {}
    writing: dict[Ticket, Filled] = {}
    at = 0
    while at < source.size or reading or writing:
        while at < source.size and len(reading) + len(writing) < depth:
            ticket = source.submit_read_mapping(at, min(piece, source.size - at))
            if ticket is None:  # the pool is full, until something is written
                break
            reading[ticket] = at
            at += min(piece, source.size - at)
        source.kick()
        for ticket in source.wait() if not writing else source.reap():
            filled = source.take(ticket)  # raises OSError if the read failed
            writing[target.submit_write_mapping(filled, reading.pop(ticket))] = filled
        for ticket in target.wait() if writing else ():
            writing.pop(ticket).release()
            target.check(ticket)  # raises OSError if the write failed
    target.flush()
    return at


if __name__ == "__main__":
    with open_slot(sys.argv[1:3]) as slot, BlockDisk(slot.bus(0)) as source, BlockDisk(slot.bus(1)) as target:
        done = copy(source, target)
        copied = sum(disk.statistics.bytes_in + disk.statistics.bytes_out for disk in (source, target))
        print(f"{done} bytes went from disk to disk, {copied} of them were copied on the way")
