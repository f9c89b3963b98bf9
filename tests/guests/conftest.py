"""Real guests: the kit, machines with served disks, and the scripts of scenarios/."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nodma.errors import Unavailable, UsageError
from nodma.guest import Job, Kernel, Kit, Machine, Outcome, Shape, debug_kernel
from nodma.guest.console import Console
from nodma.guest.debian import SUITES
from nodma.guest.kit import set_up
from nodma.hosting.process import DeviceProcess, Served
from nodma.loop import Loop
from nodma.pci_function import PciFunction
from nodma.vfio_user import Server
from nodma.vfio_user.listener import make_listener

SCENARIOS = Path(__file__).parent / "scenarios"
PLAIN = Shape()
DRIVERS = ("nodma", "virtio_blk")
PATIENCE = 400.0
"""Seconds that a guest may take for anything: it ends what hangs, on a machine however busy."""


TIMING = re.compile("soft lockup|stall|workqueue lockup")
"""Reports that a distribution's kernel may make because this machine is busy. The debug kernel waits longer."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--debug-kernel",
        choices=("all", "some"),
        help="Boot only the debug kernel: in all tests, or those marked quick_on_debug and only if it was built.",
    )

    parser.addoption(
        "--every-kernel",
        action="store_true",
        help="Boot every kernel of the kit also where the newest suffices: in tests marked newest_suffices.",
    )


def on_debug_kernel(config: pytest.Config) -> Any:
    return config.getoption("--debug-kernel", None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each of the kit's kernels, or the debug kernel."""
    if "kernel" in metafunc.fixturenames:
        names = [debug_kernel.NAME] if on_debug_kernel(metafunc.config) else [*SUITES]
        if metafunc.definition.get_closest_marker("newest_suffices") and not metafunc.config.getoption(
            "--every-kernel"
        ):
            names = names[-1:]
        metafunc.parametrize("kernel", names, indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what boots no kernel of the test's choice, and give the debug kernel the time that it needs."""
    chosen = on_debug_kernel(config)
    left_out = []
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent):
            continue
        if not chosen:
            runs = not item.get_closest_marker("needs_debug_kernel")
        else:
            runs = bool({"kernel", "newest"} & {*getattr(item, "fixturenames", ())})
            runs &= not item.get_closest_marker("distribution_kernel")
            runs &= chosen == "all" or bool(item.get_closest_marker("quick_on_debug"))
            if mark := item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(mark.args[0] * debug_kernel.SLOWNESS), append=False)
        if not runs:
            left_out.append(item)
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def kit(request: pytest.FixtureRequest) -> Kit:
    """The kit, fetched if it is not there. Where it is not available, guests are skipped; never in CI."""
    chosen = on_debug_kernel(request.config)
    try:
        kit = set_up()
        if chosen == "all":
            debug_kernel.build(kit.directory)
    except UsageError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no guests here: {error}")
    if chosen == "some":
        try:
            debug_kernel.find(kit.directory)
        except Unavailable as error:
            pytest.skip(str(error))
    return kit


@pytest.fixture(scope="module")
def kernel(kit: Kit, request: pytest.FixtureRequest) -> Kernel:
    """Each of the kit's kernels, or the debug kernel."""
    return kit.kernel(request.param)


@pytest.fixture(scope="session", autouse=True)
def consoles() -> Iterator[list[Console]]:
    """The consoles of machines that were started since a test last looked at them."""
    started: list[Console] = []
    enter = Machine.__enter__

    def entered(machine: Machine) -> Machine:
        entered = enter(machine)
        started.append(machine.console)
        return entered

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "__enter__", entered)
        yield started


@pytest.fixture(autouse=True)
def no_reports(consoles: list[Console], request: pytest.FixtureRequest) -> Iterator[None]:
    """A kernel that reports a fault of its own fails the test, whatever else the test finds."""
    yield
    found = [line for console in consoles for line in debug_kernel.reports(console.text)]
    consoles.clear()
    if not on_debug_kernel(request.config):
        found = [line for line in found if not TIMING.search(line)]
    assert not found, "the kernel reports:\n" + "\n".join(found)


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
    loop = Loop()
    server = Server(function, listener.socket, loop)
    thread = threading.Thread(target=loop.run, name=path.stem)
    thread.start()
    try:
        yield function
    finally:
        loop.stop()
        thread.join(timeout=30)
        server.close()
        loop.close()
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
        seconds: float = PATIENCE,
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

    def run_slot(
        self, kernel: Kernel, job: Job, images: Sequence[Path], *options: str, seconds: float = PATIENCE
    ) -> Run:
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
def newest(kit: Kit, request: pytest.FixtureRequest) -> Kernel:
    """The kernel for scenarios that one kernel suffices for: the middle one, a distribution's stable one."""
    return kit.kernel(debug_kernel.NAME if on_debug_kernel(request.config) else "trixie")


def check_file_system(image: Path) -> None:
    """e2fsck, on this side, finds nothing to mend."""
    done = subprocess.run(["e2fsck", "-f", "-n", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def fsck() -> Callable[[Path], None]:
    return check_file_system
