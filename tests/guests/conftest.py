"""Real guests: the kit, machines with served disks, and the scripts of scenarios/."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nodma.errors import UsageError
from nodma.guest import Job, Kernel, Kit, Machine, Outcome, Shape
from nodma.guest.debian import SUITES
from nodma.guest.kit import set_up
from nodma.hosting.process import DeviceProcess, Served
from nodma.pci_function import PciFunction
from nodma.vfio_user import Server
from nodma.vfio_user.listener import make_listener

SCENARIOS = Path(__file__).parent / "scenarios"
PLAIN = Shape()
DRIVERS = ("nodma", "virtio_blk")


@pytest.fixture(scope="session")
def kit() -> Kit:
    """The kit, fetched if it is not there. Where it cannot be had, guests are skipped; never in CI."""
    try:
        return set_up()
    except UsageError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no guests here: {error}")


@pytest.fixture(scope="module", params=SUITES)
def kernel(kit: Kit, request: pytest.FixtureRequest) -> Kernel:
    """Each of the kit's kernels."""
    return kit.kernel(request.param)


@dataclass
class Run:
    """A guest's run from start to end, and what its devices reported."""

    outcome: Outcome
    reports: list[dict[str, Any]]

    @property
    def outside(self) -> int:
        """Addresses outside the window that the devices were given."""
        return sum(report["addresses_outside_window"] for report in self.reports)


@contextmanager
def serving(function: PciFunction, path: Path) -> Iterator[PciFunction]:
    """Serve a function by a thread of this process."""
    listener = make_listener(path)
    server = Server(function, listener.socket)
    thread = threading.Thread(target=server.run, name=path.stem)
    thread.start()
    try:
        yield function
    finally:
        server.stop()
        thread.join(timeout=30)
        server.close()
        listener.remove()
        function.close()
        assert not thread.is_alive()


class Lab:
    """Makes disks, serves them, and boots machines that have them."""

    scenarios = SCENARIOS
    serving = staticmethod(serving)

    def __init__(self, kit: Kit, directory: Path) -> None:
        self.kit = kit
        self.directory = directory

    def image(self, name: str = "disk", size: int = 256 << 20) -> Path:
        """A disk image of zeros; ``size`` bytes."""
        path = self.directory / f"{name}.img"
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def serve(self, image: Path, *options: str) -> DeviceProcess:
        return DeviceProcess(image, self.socket(image), *options)

    def socket(self, image: Path) -> Path:
        return image.with_suffix(".sock")

    def machine(
        self,
        kernel: Kernel | None,
        job: Job | None,
        images: Sequence[Path | Sequence[Path]],
        shape: Shape = PLAIN,
    ) -> Machine:
        """Make a machine with the disks of ``images``, each in a slot of its own; a sequence of them shares a slot."""
        return Machine(
            self.kit.tools,
            kernel,
            job,
            functions=[
                self.socket(those) if isinstance(those, Path) else [self.socket(image) for image in those]
                for those in images
            ],
            shape=shape,
            directory=self.directory,
        )

    def run(
        self,
        kernel: Kernel,
        scenario: str,
        images: Sequence[Path],
        *options: str,
        drivers: Sequence[str] = DRIVERS,
        programs: Sequence[str] = (),
        files: Mapping[str, bytes | Path] | None = None,
        shape: Shape = PLAIN,
        seconds: float = 120,
    ) -> Run:
        """Run a scenario with disks served; its script must exit with 0."""
        job = Job((SCENARIOS / f"{scenario}.sh").read_text(), drivers=drivers, programs=programs, files=files or {})
        devices = [self.serve(image, *options) for image in images]
        try:
            with self.machine(kernel, job, images, shape) as machine:
                outcome = machine.finish(seconds)
            assert outcome.status == 0, machine.console.tail()
            return Run(outcome, [device.stop() for device in devices])
        finally:
            for device in devices:
                device.__exit__()

    def slot(self, images: Sequence[Path], *options: str) -> Served:
        """Serve disks as functions of one slot, in one pool."""
        functions = [f"blk,image={image},socket={self.socket(image)}" for image in images]
        return Served("--slot", "--share", *options, *functions)

    def run_slot(self, kernel: Kernel, job: Job, images: Sequence[Path], *options: str, seconds: float = 120) -> Run:
        """Run a job with disks in one slot and one pool; its script must exit with 0."""
        with self.slot(images, *options) as slot:
            with self.machine(kernel, job, [images]) as machine:
                outcome = machine.finish(seconds)
            assert outcome.status == 0, machine.console.tail()
            return Run(outcome, [function["report"] for function in slot.stop()["functions"]])


@pytest.fixture
def lab(kit: Kit, tmp_path: Path) -> Lab:
    return Lab(kit, tmp_path)


@pytest.fixture(scope="module")
def module_lab(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(kit, tmp_path_factory.mktemp("lab"))


@pytest.fixture
def newest(kit: Kit) -> Kernel:
    """The kernel for scenarios that one kernel suffices for: the middle one, a distribution's stable one."""
    return kit.kernel("trixie")


def check_file_system(image: Path) -> None:
    """e2fsck, on this side, finds nothing to mend."""
    done = subprocess.run(["e2fsck", "-f", "-n", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def fsck() -> Callable[[Path], None]:
    return check_file_system
