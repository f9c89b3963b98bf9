"""Runs in the guest: 500 writes and 500 reads, each verified, through the function's BAR."""

import json
import random
import time

from nodma.driver import open_disk

ROUNDS = 500
SLOTS = 128

source = random.Random(1)
with open_disk("0000:00:05.0") as disk:
    expected = {}
    begin = time.monotonic()
    for _ in range(ROUNDS):
        slot = source.randrange(SLOTS)
        expected[slot] = source.randbytes(4096)
        disk.pwrite(expected[slot], slot * 4096)
    disk.flush()
    reads = 0
    while reads < ROUNDS:
        for slot, data in expected.items():
            assert disk.pread(4096, slot * 4096) == data, slot
            reads += 1
    seconds = time.monotonic() - begin
    print(json.dumps({"rounds": ROUNDS, "reads": reads, "seconds": seconds, "features": disk.feature_names}))
