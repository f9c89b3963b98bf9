"""Runs in the guest: two functions in one pool, in the first one's BAR, and a copy from disk to disk through it."""

import json
import random

from nodma.driver import BlockDisk, open_slot

LENGTH = 64 << 10

with open_slot("0000:00:05") as slot:
    owner, sharer = (BlockDisk(slot.bus(number), polling=True) for number in slot.functions)
    data = random.Random(1).randbytes(LENGTH)
    owner.pwrite(data, 0)
    before = owner.statistics.bytes_out + sharer.statistics.bytes_in
    with owner.read_mapping(0, LENGTH) as filled:
        sharer.write_mapping(filled, LENGTH)
    copied = owner.statistics.bytes_out + sharer.statistics.bytes_in - before
    same = sharer.pread(LENGTH, LENGTH) == data
    report = {"same": same, "copied": copied, "one region": owner.device.place.address == sharer.device.place.address}
    sharer.close()
    owner.close()
print(json.dumps(report))
