"""``nodma demo``, small; that it fails when something does not hold is shown by making it not hold."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nodma.demo import story
from nodma.demo.story import DemoError, _runs
from nodma.demo.tree import make_tree
from nodma.procfs import ProcessView

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_demo_that_is_ended_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "nodma", "demo", "--requests", "100000000", "--json"],
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        stdout=subprocess.PIPE,
    ) as demo:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/disk.sock")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children = [view.pid for view in ProcessView(demo.pid).family()][1:]
        demo.send_signal(number)
        assert demo.wait(60) == 128 + number
    assert len(children) == 1
    assert list(tmp_path.iterdir()) == []
    while any(ProcessView(pid).alive for pid in children):  # one that was not ready yet ends when its parent has
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_stop_it_from_cleaning_up(tmp_path: Path, number: signal.Signals) -> None:
    ends_slowly = """
import importlib, os, shutil, signal
from nodma.cli import main

rmtree, demo = shutil.rmtree, importlib.import_module("nodma.cli.demo")
signalled = lambda *_, **__: os.kill(os.getpid(), NUMBER)
shutil.rmtree = lambda *words, **options: signalled() or rmtree(*words, **options)
demo.run_demo = lambda *_, **__: signalled() or signal.pause()
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", ends_slowly.replace("NUMBER", str(int(number))), "demo"],
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (128 + number, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_it_cleans_up_at_its_end_leaves_nothing_behind(tmp_path: Path) -> None:
    signalled_late = """
import importlib, os, shutil, signal
from nodma.cli import main

rmtree, demo = shutil.rmtree, importlib.import_module("nodma.cli.demo")
shutil.rmtree = lambda *words, **options: os.kill(os.getpid(), signal.SIGTERM) or rmtree(*words, **options)
demo.run_demo = lambda *_, **__: demo.Findings()
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", signalled_late, "demo", "--json"],
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_while_a_program_starts_leaves_no_program_that_writes_on(tmp_path: Path) -> None:
    ends_it_early = """
import importlib, os, signal, subprocess
from nodma.cli import main
from nodma.demo import ext4

demo, fork_exec = importlib.import_module("nodma.cli.demo"), subprocess._fork_exec

def forks(*words):
    pid = fork_exec(*words)
    os.kill(os.getpid(), signal.SIGTERM)
    return pid

subprocess._fork_exec = forks
write = 'i=0; while [ $i -lt 100 ]; do i=$((i + 1)); mkdir -p "$0/$i"; sleep 0.05; done'
demo.run_demo = lambda work, **_: ext4._run(["sh", "-c", write, str(work)])
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", ends_it_early, "demo"],
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,  # which waits for all that have the pipes open, a program that is left too
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_pool_that_cannot_be_is_a_wrong_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nodma", "demo", "--pool", "3M"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Invalid value for '--pool': the pool must be a power of two" in done.stderr


def tell(work: Path) -> None:
    story.run_demo(work, files=120, pool=1 << 20, requests=1000, progress=lambda *_: None)


def test_a_canary_that_is_found_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = story.examine

    def finds_all(pid: int, *, needles: list[bytes], **more: Any) -> Any:
        return replace(real(pid, needles=needles, **more), found=frozenset(needles))

    monkeypatch.setattr(story, "examine", finds_all)
    with pytest.raises(DemoError, match="has the canary of the driver's memory"):
        tell(tmp_path)


KEEPS_DESCRIPTORS = """
import os
real = os.close
def close(fd):
    if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):
        os.dup(fd)
    real(fd)
os.close = close
"""


def test_a_device_process_that_keeps_a_descriptor_fails_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(KEEPS_DESCRIPTORS)
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(story, "examine", partial(story.examine, settle=0.3))
    with pytest.raises(DemoError, match=r"holds more than its window: guest memory, .* is open as descriptor"):
        tell(tmp_path / "work")


COLLIDING = """
import os
from pathlib import Path
from nodma.demo import story
from nodma.window import Window
fd = -1
while fd < 0 or os.fstat(fd).st_ino < os.stat("/dev/null").st_ino:
    fd = os.open(f"{DIRECTORY}/memory{fd}", os.O_RDWR | os.O_CREAT)
def create(size):
    os.ftruncate(fd, size)
    return Window(fd, size)
story.Window.create = create
(Path(DIRECTORY) / "work").mkdir()
found = story.run_demo(Path(DIRECTORY) / "work", files=30, pool=1 << 20, requests=1000, progress=lambda *_: None)
print(len(found.checks), found.ram.inode in [item.file.inode for item in found.descriptors])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_memory_with_the_inode_number_of_something_else_does_not_fail_the_demo(tmp_path: Path) -> None:
    """On a fresh tmpfs inode numbers count from 1; the device process has /dev/null open."""
    script = f"mount -t tmpfs tmpfs {tmp_path} && exec {sys.executable} -c '{COLLIDING}'"
    script = script.replace("{DIRECTORY}", str(tmp_path)).replace("DIRECTORY", f'"{tmp_path}"')
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("6 True\n", "")


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
