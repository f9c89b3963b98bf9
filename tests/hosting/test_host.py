"""Several functions in one process: assembled, served, and ended, though one of them fails."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from nodma.device.base import Device, Queue
from nodma.driver import open_disk
from nodma.errors import Unavailable, UsageError
from nodma.hosting import host as module
from nodma.hosting.devices import BLK
from nodma.hosting.host import FunctionSettings, Host
from nodma.vfio_user.listener import make_listener

POOL = FunctionSettings(1 << 20)


class Odd(Device):
    """A device that can be told to fail."""

    device_type = 0x2A
    queues = (Queue("echo"),)

    def __init__(self, *, closing: Exception | None = None, reloading: Exception | None = None) -> None:
        super().__init__()
        self.closing, self.reloading = closing, reloading
        self.reloaded = threading.Event()
        self.closed = False

    def echo(self, _: object) -> None:
        """Do nothing."""

    def reload(self) -> None:
        self.reloaded.set()
        if self.reloading:
            raise self.reloading

    def close(self) -> None:
        self.closed = True
        if self.closing:
            raise self.closing


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as made:
        yield made


@pytest.fixture
def add(host: Host, tmp_path: Path) -> Callable[[Odd], Odd]:
    def make(device: Odd) -> Odd:
        number = len(host.functions)
        host.add(f"function {number}", lambda: device, partial(make_listener, tmp_path / str(number)), POOL)
        return device

    return make


def meanwhile(host: Host, work: Callable[[], None]) -> threading.Thread:
    """Do work while the host runs, then stop it."""

    def run() -> None:
        try:
            work()
        finally:
            host.stop()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_eight_disks_are_served_by_one_loop(host: Host, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.sock" for number in range(8)]
    for number, path in enumerate(paths):
        image = tmp_path / f"{number}.img"
        image.write_bytes(bytes([number]) * (1 << 16))
        make = partial(BLK.make, pool=1 << 20, image=image)
        host.add(f"function {number}", make, partial(make_listener, path), POOL)
    host.listen()

    def use() -> None:
        disks = [open_disk(path) for path in paths]
        for _ in range(3):
            for number, disk in enumerate(disks):
                assert disk.pread(512, 0) == bytes([number]) * 512
                disk.pwrite(b"written", 1024)
        for disk in disks:
            disk.close()

    thread = meanwhile(host, use)
    reports = host.run()
    thread.join(30)
    assert [(report["clients"], report["device"]["writes"]) for report in reports] == [(1, 3)] * 8
    assert [report["problems"] for report in reports] == [[]] * 8
    assert not any(path.exists() for path in paths)


def test_one_that_cannot_end_well_does_not_keep_the_others(
    host: Host, add: Callable[[Odd], Odd], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    devices = [add(Odd()), add(Odd(closing=OSError(5, "the disk is gone"))), add(Odd(closing=ValueError("bug")))]
    host.listen()
    host.stop()
    first, second, third = host.run()
    assert [device.closed for device in devices] == [True] * 3
    assert first["problems"] == []
    assert "the disk is gone" in second["problems"][0]
    assert "bug" in third["problems"][0]
    assert not list(tmp_path.glob("[0-9]"))


def test_devices_look_at_their_back_ends_again_and_may_fail(
    host: Host, add: Callable[[Odd], Odd], caplog: pytest.LogCaptureFixture
) -> None:
    devices = [add(Odd(reloading=error)) for error in (ValueError("bug"), Unavailable("it shrank"), None)]
    host.listen()

    def use() -> None:
        host.reload()
        for device in devices:
            assert device.reloaded.wait(30)

    thread = meanwhile(host, use)
    with caplog.at_level(logging.WARNING):
        host.run()
    thread.join(30)
    assert "bug" in caplog.text
    assert "it shrank" in caplog.text


def test_what_cannot_be_made_leaves_nothing(host: Host, tmp_path: Path, count_descriptors: Callable[[], int]) -> None:
    before = count_descriptors()
    device = Odd()
    listen = partial(make_listener, tmp_path / "s")
    with pytest.raises(UsageError, match="3145728"):
        host.add("function 0", lambda: device, listen, FunctionSettings(3 << 20))
    assert device.closed
    with pytest.raises(Unavailable, match="cannot create the device: ZeroDivisionError: division by zero"):
        host.add("function 0", lambda: 1 / 0, listen, POOL)  # type: ignore[arg-type, return-value]
    assert count_descriptors() == before
    assert host.functions == []


def test_sockets_appear_when_all_devices_are_there(host: Host, add: Callable[[Odd], Odd], tmp_path: Path) -> None:
    add(Odd())
    add(Odd())
    (tmp_path / "1").write_text("in the way")
    assert not (tmp_path / "0").exists()
    with pytest.raises(UsageError, match="exists"):
        host.listen()
    host.__exit__()
    assert not (tmp_path / "0").exists()
    assert (tmp_path / "1").read_text() == "in the way"


def test_giving_up_says_what_was_not_done_and_removes_the_sockets(tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from tests.hosting.test_host import *
        host = Host()
        for number in range(2):
            host.add(f"function {{number}}", Odd, partial(make_listener, Path({str(tmp_path)!r}) / str(number)), POOL)
        host.listen()
        host.functions[1].doing = "syncing"
        host.give_up("it hung")
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "nodma: error: ended by force, because it hung; not done: function 1: syncing\n"
    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_time_to_finish_requests_is_for_all_together(host: Host, add: Callable[[Odd], Odd]) -> None:
    for _ in range(3):
        add(Odd())
    host.listen()
    given: list[float] = []
    for hosted in host.functions:
        assert hosted.server
        hosted.server.finish = given.append  # type: ignore[method-assign]
    host.stop()
    host.run()
    assert sorted(given, reverse=True) == given
    assert given[0] <= module._FINISH_SECONDS


def test_what_a_program_gives_must_be_a_device_that_can_be(host: Host, tmp_path: Path) -> None:
    listen = partial(make_listener, tmp_path / "s")
    with pytest.raises(UsageError, match="expected a Device, got 3"):
        host.add("function 0", lambda: 3, listen, POOL)  # type: ignore[arg-type, return-value]
    odd = Odd()
    odd.queues = 7  # type: ignore[assignment]
    with pytest.raises(UsageError, match="the device cannot be served: TypeError"):
        host.add("function 0", lambda: odd, listen, POOL)
    assert odd.closed


def test_memory_that_is_not_there_is_said(
    host: Host, add: Callable[[Odd], Odd], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(module, "PciFunction", fail)
    with pytest.raises(Unavailable, match=r"function 0 cannot be served: .*Cannot allocate memory"):
        add(Odd())


def test_what_is_left_unfinished_is_a_problem(host: Host, add: Callable[[Odd], Odd]) -> None:
    add(Odd()).unfinished = "a sync hangs"
    host.listen()
    host.stop()
    (report,) = host.run()
    assert report["problems"] == ["function 0: a sync hangs"]


def test_a_part_of_the_end_that_fails_is_noted_and_the_rest_is_done(
    host: Host, add: Callable[[Odd], Odd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UsageError("no more")

    device = add(Odd())
    host.listen()
    hosted = host.functions[0]
    assert hosted.server
    monkeypatch.setattr(hosted.server, "finish", fail)
    monkeypatch.setattr(host.loop, "run", fail)
    (report,) = host.run()
    assert report["problems"] == ["no more", "function 0: finishing requests: no more"]
    assert device.closed
    assert not (tmp_path / "0").exists()


def test_one_that_never_listened_is_closed(add: Callable[[Odd], Odd], host: Host) -> None:
    device = add(Odd())
    host.functions[0].finish(0)
    host.__exit__()
    assert device.closed
