"""What several tests share: both builds of the ring, a disk image, a served disk, a driver of registers."""

from __future__ import annotations

import gc
import importlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from nodma.builds import is_compiled, load_interpreted
from nodma.device import BlockDevice
from nodma.device.image import Image
from nodma.loop import Loop
from nodma.pci_function import PciFunction
from nodma.spec.pci import Command, Type0Header
from nodma.spec.vfio_user import Region
from nodma.spec.virtio import Status
from nodma.spec.virtio_pci import CommonCfg
from nodma.vfio_user import Server
from nodma.vfio_user.listener import make_listener

settings.register_profile("nodma", deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)
settings.register_profile("brief", settings.get_profile("nodma"), max_examples=20, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "nodma"))

ROOT = Path(__file__).parents[1]
POOL = 1 << 20
BASE = 0x10_0000_0000
DISK = 1 << 20


def build(name: str, kind: str) -> ModuleType:
    """A module that is compiled: interpreted, or that build if there is one."""
    if kind == "interpreted":
        return load_interpreted(name)
    module = importlib.import_module(name)
    if not is_compiled(module):
        pytest.skip("the ring was not compiled here: there is no C compiler")
    return module


@pytest.fixture
def load_build() -> Callable[[str, str], ModuleType]:
    return build


@pytest.fixture
def load_end() -> Callable[[str, str], ModuleType]:
    return lambda end, kind: build(f"nodma.ring.{end}", kind)


@pytest.fixture(params=["interpreted", "compiled"])
def device_end(request: pytest.FixtureRequest) -> ModuleType:
    return build("nodma.ring.device_end", request.param)


@pytest.fixture(params=["interpreted", "compiled"])
def driver_end(request: pytest.FixtureRequest) -> ModuleType:
    return build("nodma.ring.driver_end", request.param)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk image of 1 MiB, no sector like another."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(number.to_bytes(4, "little") * 128 for number in range(DISK // 512)))
    return path


@pytest.fixture
def make_function(image: Path) -> Iterator[Callable[..., PciFunction]]:
    """Make functions with the image's disk in them, or another's."""
    made = []
    first = image

    def make(
        *, pool: int = POOL, queues: int = 1, read_only: bool = False, image: Path = first, **more: Any
    ) -> PciFunction:
        device = BlockDevice(Image(image, read_only=read_only, lock=False), pool=pool, queues=queues)
        function = PciFunction(device, pool=pool, **more)
        made.append(function)
        return function

    yield make
    for function in made:
        function.close()


class Registers:
    """A driver that writes registers by hand, right or wrong."""

    def __init__(self, function: PciFunction) -> None:
        self.function = function

    def set(self, field: Any, value: int) -> None:
        self.function.write(0, field.offset, int(value).to_bytes(field.size, "little"))

    def get(self, field: Any) -> int:
        return int.from_bytes(self.function.read(0, field.offset, field.size), "little")

    @property
    def status(self) -> Status:
        return Status(self.get(CommonCfg.device_status))

    def place(self, base: int = BASE, command: int = Command.MEMORY) -> None:
        """Put the window at ``base``, and set the command register."""
        self.function.write(Region.CONFIG, Type0Header.bar2.offset, base.to_bytes(8, "little"))
        self.function.write(Region.CONFIG, Type0Header.command.offset, int(command).to_bytes(2, "little"))

    def negotiate(self, features: int | None = None) -> Status:
        """Go as far as FEATURES_OK; all features unless others are given."""
        if features is None:
            features = self.function.core.offered
        self.set(CommonCfg.device_status, Status.ACKNOWLEDGE | Status.DRIVER)
        for word in (0, 1):
            self.set(CommonCfg.driver_feature_select, word)
            self.set(CommonCfg.driver_feature, features >> 32 * word & 0xFFFFFFFF)
        self.set(CommonCfg.device_status, Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        return self.status

    def enable(self, layout: Any, base: int = BASE, index: int = 0) -> None:
        """Set a queue up, and enable it."""
        self.set(CommonCfg.queue_select, index)
        self.set(CommonCfg.queue_size, layout.size)
        self.set(CommonCfg.queue_desc, base + layout.desc)
        self.set(CommonCfg.queue_driver, base + layout.avail)
        self.set(CommonCfg.queue_device, base + layout.used)
        self.set(CommonCfg.queue_enable, 1)

    def ready(self) -> None:
        """Set DRIVER_OK."""
        self.set(CommonCfg.device_status, self.status | Status.DRIVER_OK)

    def notify(self, index: int = 0) -> None:
        self.function.write(0, 0x3000 + 4 * index, index.to_bytes(2, "little"))


@pytest.fixture
def registers() -> type[Registers]:
    return Registers


class Served:
    """A function served by a thread; :attr:`path` is its socket."""

    def __init__(self, function: PciFunction, path: Path) -> None:
        self.function = function
        self.path = path
        self.listener = make_listener(path)
        self.loop = Loop()
        self.server = Server(function, self.listener.socket, self.loop)

    @contextmanager
    def running(self) -> Iterator[Served]:
        thread = threading.Thread(target=self.run, name="device")
        thread.start()
        try:
            yield self
        finally:
            self.loop.stop()
            thread.join(timeout=30)
            assert not thread.is_alive()
            self.close()

    def run(self) -> None:
        self.loop.run()
        self.server.finish(2.0)

    def connect(self) -> socket.socket:
        """A raw client."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(str(self.path))
        return sock

    def close(self) -> None:
        self.server.close()
        self.loop.close()
        self.listener.remove()


@pytest.fixture
def make_served(make_function: Callable[..., PciFunction], tmp_path: Path) -> Callable[..., Served]:
    """Make a server that is not running yet; its queues have threads of their own, as a device process's do."""

    def make(*, threads: bool = True, path: Path = tmp_path / "disk.sock", **options: Any) -> Served:
        return Served(make_function(threads=threads, **options), path)

    return make


@pytest.fixture
def served(make_served: Callable[..., Served]) -> Iterator[Served]:
    """A disk of 1 MiB with two queues, served by a thread."""
    with make_served(queues=2).running() as running:
        yield running


class DescriptorCount:
    """Counts this process's open descriptors. A server closes those of its clients in a thread, or in a child."""

    def __call__(self) -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def settles(self, expected: int) -> bool:
        """Wait until so many are open; False if that never comes."""
        end = time.monotonic() + 60
        while self() != expected:
            if time.monotonic() > end:
                return False
            os.sched_yield()
        return True


@pytest.fixture
def count_descriptors() -> DescriptorCount:
    """Count descriptors, less those that only garbage of earlier tests holds.

    Garbage made after that counts: a device that waits for a collection to close a window leaks it.
    """
    gc.collect()
    return DescriptorCount()


def page_script(page: Path) -> str:
    """The commands of a page's console blocks, as one script: lines that begin with "$ ", and go on with "> "."""
    lines = ["set -e"]
    for block in re.findall(r"^```console\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            assert line.startswith(("$ ", "> ")), f"no command, and output belongs in a text block: {line}"
            lines.append(line[2:])
    return "\n".join(lines)


@pytest.fixture
def run_page(tmp_path: Path) -> Callable[[Path, float], subprocess.CompletedProcess[str]]:
    """Run the commands of a page as a reader would, in an empty directory with the repository's own beside it."""

    def run(page: Path, seconds: float) -> subprocess.CompletedProcess[str]:
        for name in ("examples", "tests"):
            (tmp_path / name).symlink_to(ROOT / name)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", page_script(page)],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    return run
