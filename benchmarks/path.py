"""The whole path between two processes: `nodma serve blk`, its socket, and the reference driver."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

from nodma.driver import open_disk
from nodma.hosting.process import DeviceProcess
from nodma.ring import COMPILED


def measure(image: Path, depth: int, size: int, seconds: float) -> dict[str, float | str]:
    """Read at random, ``depth`` requests in flight, sleeping for interrupts; CPU is the driver's."""
    with tempfile.TemporaryDirectory(prefix="nodma-bench-") as directory:
        socket = Path(directory) / "disk.sock"
        with DeviceProcess(image, socket, "--pool", "256M") as process:
            with open_disk(socket, depth=depth) as disk:
                source = random.Random(7)
                last = disk.size // size
                buffers = [bytearray(size) for _ in range(depth)]
                for buffer in buffers:
                    disk.submit_read(source.randrange(last) * size, buffer)
                sent, done = depth, 0
                begin, cpu = time.perf_counter(), os.times()
                while (spent := time.perf_counter() - begin) < seconds:
                    for _ in disk.wait():
                        done += 1
                        disk.submit_read(source.randrange(last) * size, buffers[sent % depth])
                        sent += 1
                used = os.times()
                while disk.in_flight:
                    disk.wait()
            report = process.stop()
    if report["device"]["errors"] or report["needs_reset"]:
        raise RuntimeError(f"the benchmark's requests failed: {report}")
    return {
        "ring": "compiled" if COMPILED else "interpreted",
        "rate": done / spent,
        "cpu_us": (used.user + used.system - cpu.user - cpu.system) / max(1, done) * 1e6,
    }
