"""``nodma demo``, small; that it fails when something does not hold is shown by making it not hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nodma.demo import story
from nodma.demo.story import DemoError, _runs
from nodma.demo.tree import make_tree

SMALL = ["--files", "150", "--requests", "2000"]


def test_all_holds_and_nothing_is_left_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nodma", "demo", *SMALL, "--json"],
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert len(found["checks"]) == 6
    assert found["files"] >= 150
    assert found["device"]["dma_descriptors_closed"] == 1
    assert found["pool"]["used"] == 0
    assert list(tmp_path.iterdir()) == []


def tell(work: Path) -> None:
    story.tell(work, files=120, pool="1M", requests=1000, progress=lambda *_: None)


def test_a_device_process_that_holds_guest_memory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story.ProcessView, "contains", lambda *_: True)  # as if the canary were there
    with pytest.raises(DemoError, match="has the canary of the driver's memory"):
        tell(tmp_path)


def test_a_descriptor_that_was_kept_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = story.ProcessView.descriptors

    def with_ram(view: story.ProcessView) -> list[story.Descriptor]:
        return [*real(view), story.Descriptor(99, "/memfd:ram", found_inode[0])]

    found_inode: list[int] = []
    memory = story._guest_memory

    def guest_memory() -> tuple[story.Window, bytes]:
        made = memory()
        found_inode.append(os.fstat(made[0].fd).st_ino)
        return made

    monkeypatch.setattr(story, "_guest_memory", guest_memory)
    monkeypatch.setattr(story.ProcessView, "descriptors", with_ram)
    with pytest.raises(DemoError, match="holds the driver's memory"):
        tell(tmp_path)


def test_a_write_that_went_astray_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = story.BlockDisk.pwrite

    def astray(disk: story.BlockDisk, data: bytes, offset: int) -> int:
        return real(disk, data, offset + 4096)

    monkeypatch.setattr(story.BlockDisk, "pwrite", astray)
    with pytest.raises(DemoError):
        tell(tmp_path)


def test_runs_of_blocks_are_as_long_as_they_can_be() -> None:
    assert _runs([10, 11, 12, 20, 21], 5 * 4096 - 100) == [(0, 3 * 4096, 40960), (3 * 4096, 8092, 81920)]
    assert _runs([7], 5) == [(0, 5, 7 * 4096)]
    assert _runs([], 0) == []


def test_the_tree_has_the_files_that_were_asked_for(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 500, lambda _: None)
    assert len(tree.digests) == 500
    assert any(path.startswith("nodma/") for path in tree.digests)
    assert tree.rewritable
