"""Copy a disk to another through the pool that they share: what one device read, the other writes from the same slots.

Serve them:  nodma serve --slot --share blk,image=a.img,socket=a.sock blk,image=b.img,socket=b.sock
Copy them:   python copy_disks.py a.sock b.sock
"""

import sys

from nodma.driver import BlockDisk, PendingRequest, RetainedBuffer, open_slot

PIECE = 512 << 10


def copy(source: BlockDisk, target: BlockDisk, *, depth: int = 4) -> int:
    """Copy all of ``source`` to the beginning of ``target``, up to ``depth`` pieces at once; gives the bytes."""
    piece = min(PIECE, source.max_request, target.max_request)
    reading: dict[PendingRequest, int] = {}
    writing: dict[PendingRequest, RetainedBuffer] = {}
    at = 0
    while at < source.size or reading or writing:
        while at < source.size and len(reading) + len(writing) < depth:
            pending = source.submit_read_mapping(at, min(piece, source.size - at))
            if pending is None:  # the pool is full, until something is written
                break
            reading[pending] = at
            at += min(piece, source.size - at)
        source.kick()
        for pending in source.wait() if not writing else source.reap():
            retained = source.take(pending)  # raises OSError if the read failed
            writing[target.submit_write_mapping(retained, reading.pop(pending))] = retained
        for pending in target.wait() if writing else ():
            writing.pop(pending).release()
            target.check(pending)  # raises OSError if the write failed
    target.flush()
    return at


if __name__ == "__main__":
    with open_slot(sys.argv[1:3]) as slot, BlockDisk(slot.bus(0)) as source, BlockDisk(slot.bus(1)) as target:
        done = copy(source, target)
        copied = sum(disk.statistics.bytes_in + disk.statistics.bytes_out for disk in (source, target))
        print(f"{done} bytes went from disk to disk, {copied} of them were copied on the way")
