"""The profile dmb on the driver's end: found, checked, and kept to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nodma.driver import VfioUserBus, VirtioPci, open_disk
from nodma.errors import DeviceFailed, NegotiationError, ProbeError
from nodma.pci import ConfigSpace
from nodma.pci_function import PciFunction
from nodma.spec.dmb import SHM_ID
from nodma.spec.profiles import DMB, SWIOTLB
from nodma.spec.virtio import Feature, Status
from nodma.spec.virtio_pci import CfgType, CommonCfg, VirtioPciCap, VirtioPciCap64


@pytest.fixture
def served(make_served: Callable[..., Any]) -> Any:
    """A server that is not running yet."""
    return make_served(profile=DMB, queues=2)


@pytest.fixture
def running(served: Any) -> Iterator[Any]:
    with served.running():
        yield served


def capability(function: PciFunction, cfg_type: CfgType, layout: type[VirtioPciCap] = VirtioPciCap) -> Any:
    """The live bytes of a capability, to lie in."""
    data = function._config.data
    found = ConfigSpace.parse(bytes(data)).virtio(cfg_type)
    assert found
    return layout(data, found.offset)


@pytest.mark.parametrize("polling", [False, True])
def test_a_disk_is_read_and_written_by_offsets(running: Any, polling: bool) -> None:
    with open_disk(running.path, queues=2, polling=polling) as disk:
        assert disk.device.profile is DMB
        assert disk.device.accepted & DMB.needs == DMB.needs
        assert disk.pread(4, 512) == (1).to_bytes(4, "little")
        disk.pwrite(b"x" * 300_000, 1000)
        assert disk.pread(300_000, 1000) == b"x" * 300_000
        disk.flush()
    assert running.function.core.counters.outside == 0
    assert running.function.core.counters.needs_reset == 0


def test_nothing_lies_at_offset_0(running: Any) -> None:
    with open_disk(running.path, queues=2) as disk:
        for queue in running.function.core.queues:
            assert all(0 < address < 1 << 20 for address in (queue.desc, queue.driver, queue.device))
        for _ in range(32):
            disk.pread(1 << 19, 0)
        assert running.function.window.view(0, 1).tobytes() == b"\0"
        assert disk.device.reserve(1) > 0


def test_where_the_bar_is_makes_no_difference(running: Any) -> None:
    with VirtioPci(VfioUserBus.connect(running.path)) as device:
        device.negotiate(0)
        device.set_up_queue(0, 16)
        device.start()
        assert running.function.core.queues[0].desc < 1 << 20 < device.place.address


LIES: dict[str, tuple[Callable[[PciFunction], None], str]] = {
    "no region has the id": (lambda f: set_region(f, id=SHM_ID + 1), "breaks DMB-V2: .* 0 shared memory regions"),
    "beyond the BAR": (lambda f: set_region(f, length_hi=1), "reaches from 0x0 to 0x100100000 in BAR 2"),
    "one that wraps": (lambda f: set_region(f, offset_hi=0xFFFFFFFF, offset=0xFFFFF000), "in BAR 2 of 0x100000 bytes"),
    "without length": (lambda f: set_region(f, length=0), "has no length"),
    "in no BAR": (lambda f: set_region(f, bar=4), "names BAR 4, which does not exist"),
    "over the registers": (lambda f: set_region(f, bar=0, length=0x8000), "breaks DMB-V4"),
    "no register that names it": (
        lambda f: setattr(capability(f, CfgType.COMMON), "length", CommonCfg.size),
        "too short for the register dmb_shm_id",
    ),
}


def set_region(function: PciFunction, **values: int) -> None:
    region = capability(function, CfgType.SHARED_MEMORY, VirtioPciCap64)
    for name, value in values.items():
        setattr(region, name, value)


@pytest.mark.parametrize("name", LIES)
def test_a_device_that_lies_is_refused_with_a_reason(served: Any, name: str) -> None:
    change, why = LIES[name]
    change(served.function)
    served.function._config._initial = bytes(served.function._config.data)
    with served.running(), pytest.raises(ProbeError, match=why):
        open_disk(served.path)


def test_without_what_it_needs_the_feature_is_not_accepted(served: Any) -> None:
    served.function.core.offered &= ~Feature.ACCESS_PLATFORM.mask
    with served.running(), pytest.raises(ProbeError, match="breaks DMB-V1"):
        open_disk(served.path)


def test_platform_order_is_accepted_where_it_is_offered(served: Any) -> None:
    """With VERSION_1 and ACCESS_PLATFORM, the feature needs it (DMB-D1)."""
    served.function.core.offered |= Feature.ORDER_PLATFORM.mask
    with served.running(), VirtioPci(VfioUserBus.connect(served.path)) as device:
        assert device.negotiate(0) & Feature.ORDER_PLATFORM.mask


def test_a_profile_that_is_asked_for_must_be_there(running: Any) -> None:
    with pytest.raises(ProbeError, match=r"no region of the profile swiotlb .capability 10"):
        VirtioPci(VfioUserBus.connect(running.path), SWIOTLB)


def test_offset_0_is_caught_by_the_device(running: Any) -> None:
    with VirtioPci(VfioUserBus.connect(running.path)) as device:
        device.negotiate(0)
        device._free = 0  # a driver that does not reserve it
        device.set_up_queue(0, 16)
        with pytest.raises(DeviceFailed):
            device.start()
        assert device.status & Status.DEVICE_NEEDS_RESET
    assert "is outside the window [0x1, 0x100000)" in running.function.core.reason
    assert running.function.core.counters.outside == 1


def test_a_driver_that_does_not_know_it_is_refused(running: Any) -> None:
    with VirtioPci(VfioUserBus.connect(running.path)) as device:
        device.offered &= ~Feature.DMB.mask
        with pytest.raises(NegotiationError, match="the device refuses the features"):
            device.negotiate(0)
    assert "DMB-V6" in running.function.core.reason
