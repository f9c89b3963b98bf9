"""A function as sysfs shows it: a directory of files that stand for its resources."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodma.driver import SysfsBus, open_disk
from nodma.errors import OutOfWindow, ProbeError, UsageError
from nodma.spec.pci import Command, Type0Header

ADDRESS = "0000:00:05.0"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A function with registers in BAR 0 and memory in BAR 2."""
    function = tmp_path / ADDRESS
    function.mkdir()
    header = Type0Header.new(command=int(Command.BUS_MASTER))
    (function / "config").write_bytes(bytes(header).ljust(256, b"\0"))
    (function / "enable").write_text("0")
    lines = ["0x0000000000001000 0x0000000000001fff 0x0000000000040200", "0x0 0x0 0x0"]
    lines.append("0x0000001000000000 0x000000100000ffff 0x000000000014220c")
    (function / "resource").write_text("\n".join(lines) + "\n")
    (function / "resource0").write_bytes(bytes(range(256)) * 16)
    (function / "resource2").write_bytes(bytes(0x10000))
    return function


@pytest.fixture
def bus(place: Path) -> SysfsBus:
    return SysfsBus.open("00:05.0", place.parent)


def test_bars_and_registers(bus: SysfsBus, place: Path) -> None:
    assert bus.bar_sizes() == {0: 0x1000, 2: 0x10000}
    assert bus.read_bar(0, 0x10, 1) == b"\x10"
    assert bus.read_bar(0, 0x10, 2) == b"\x10\x11"
    assert bus.read_bar(0, 0x10, 4) == b"\x10\x11\x12\x13"
    assert bus.read_bar(0, 0x10, 8) == bytes(range(0x10, 0x18))
    assert bus.read_bar(0, 0x10, 3) == b"\x10\x11\x12"
    bus.write_bar(0, 0x20, b"\xaa\xbb")
    bus.post_bar(0, 0x24, b"\x01\x02\x03\x04")
    bus.close()
    assert (place / "resource0").read_bytes()[0x1F:0x29] == b"\x1f\xaa\xbb\x22\x23\x01\x02\x03\x04\x28"


def test_a_register_outside_its_bar_is_not_touched(bus: SysfsBus) -> None:
    with pytest.raises(OutOfWindow):
        bus.read_bar(0, 0x1000, 4)
    bus.close()


def test_enabling_decodes_memory_and_leaves_bus_mastering_off(bus: SysfsBus, place: Path) -> None:
    bus.enable()
    assert (place / "enable").read_text() == "1"
    command = Type0Header.command
    value = int.from_bytes(bus.read_config(command.offset, command.size), "little")
    assert value & Command.MEMORY
    assert value & Command.INTX_DISABLE
    assert not value & Command.BUS_MASTER
    bus.close()
    bus.close()
    assert (place / "enable").read_text() == "0"


def test_the_window_is_the_resource(bus: SysfsBus, place: Path) -> None:
    with bus.map_bar(2, 0, 4096) as window:
        window.view(0x800, 5)[:] = b"hello"
    assert (place / "resource2").read_bytes()[0x800:0x805] == b"hello"
    with pytest.raises(ProbeError, match="no BAR 4"):
        bus.map_bar(4, 0, 4096)
    bus.close()


def test_there_are_no_interrupts(bus: SysfsBus) -> None:
    with pytest.raises(ProbeError, match="poll"):
        bus.enable_msix(1)
    bus.close()


def test_a_bound_driver_is_left_alone(place: Path) -> None:
    (place / "driver").symlink_to("../../../bus/pci/drivers/virtio-pci")
    with pytest.raises(ProbeError, match=r"the driver virtio-pci is bound to 0000:00:05\.0.*unbind"):
        SysfsBus.open(ADDRESS, place.parent)


def test_what_is_no_function(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no PCI function"):
        SysfsBus.open(ADDRESS, tmp_path)
    with pytest.raises(UsageError, match="is not a PCI address"):
        SysfsBus.open("disk.sock", tmp_path)


def test_open_disk_takes_an_address() -> None:
    with pytest.raises(UsageError, match="no PCI function ffff:ff:1f"):
        open_disk("ffff:ff:1f.7")
