"""The front end against `nodma serve blk`, for a moment: so that it does not rot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.front import Work, cell_bytes
from benchmarks.peers import BARE, INTERPRETED, OURS, Peer

SECONDS = 0.1

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="the front end is in C: there is no compiler")


@pytest.mark.parametrize(
    ("size", "segment", "expected"), [(4096, 1 << 17, 128), (1 << 17, 1 << 17, 128), (1 << 20, 1 << 17, 192)]
)
def test_a_cell_holds_header_status_and_table(size: int, segment: int, expected: int) -> None:
    assert cell_bytes(Work(size), segment) == expected


@needs_compiler
@pytest.mark.parametrize(
    "work",
    [Work(depth=8), Work(depth=1, polled=True), Work(depth=4, write=True, queues=2), Work(bytes=1 << 17, depth=2)],
    ids=lambda work: f"{work.bytes}-{work.depth}-{work.queues}",
)
@pytest.mark.parametrize("peer", [OURS, INTERPRETED, BARE], ids=lambda peer: peer.name)
def test_requests_are_made_and_counted(peer: Peer, work: Work, image: Path, tmp_path: Path) -> None:
    found = peer.measure(image, tmp_path, work, SECONDS)
    assert found.done > 0
    assert found.device_cpu_us > 0
    if peer is not BARE:
        assert 0 < found.p50_us <= found.p99_us


@needs_compiler
def test_what_is_written_arrives(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    OURS.measure(image, tmp_path, Work(depth=4, write=True), SECONDS)
    assert image.read_bytes() != before
