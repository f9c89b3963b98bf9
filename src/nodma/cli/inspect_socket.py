"""Look at the function behind a vfio-user socket, and leave it as it was found.

Two registers are written, because without them nothing is to be read: ``device_feature_select`` and
``queue_select``. Both get back what they had. The ISR status and pci_cfg_data, whose reading changes something, are
not read; the device status is not written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from nodma.errors import Disconnected, NodmaError, ProtocolError
from nodma.pci.config import ConfigSpace, VirtioCapability
from nodma.pci.probe import read_config
from nodma.pci.report import QueueState, Report, VirtioState
from nodma.spec.dmb import DmbCommonCfg
from nodma.spec.layout import Field
from nodma.spec.pci import BAR_COUNT, EXPANSION_ROM, FIRST_CAPABILITY
from nodma.spec.vfio_user import Region
from nodma.spec.virtio import FEATURE_BITS, DeviceType, Feature
from nodma.spec.virtio_blk import BlkConfig
from nodma.spec.virtio_pci import CfgType, CommonCfg
from nodma.vfio_user.client import RegionReply

SLOT: Final = "00:00.0"
"""Where a function is that is on no bus yet."""
MAX_QUEUES: Final = 64
"""How many queues are looked at."""
_CONFIG_TRIES: Final = 5
_FEATURE_WORD_BITS: Final = 8 * CommonCfg.device_feature.size


class Regions(Protocol):
    """What of a vfio-user client is used here."""

    def region_info(self, index: int) -> RegionReply:
        """Ask for a region; its descriptor is the caller's."""

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read."""

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """Write."""


def inspect_regions(client: Regions) -> Report:
    """Report on the function that ``client`` is connected to.

    Raises NodmaError if even its configuration space cannot be read; all else that cannot be is told in the
    report.
    """
    size = _region_size(client, Region.CONFIG)
    if size < FIRST_CAPABILITY:
        raise ProtocolError(f"the server has a configuration space of {size} bytes, fewer than {FIRST_CAPABILITY}")
    raw = read_config(lambda offset, count: client.region_read(Region.CONFIG, offset, count), size)
    reader = _Reader(client)
    sizes: dict[int, int] = {}
    for bar in range(BAR_COUNT):
        with reader.trying(f"the size of BAR {bar}"):
            sizes[bar] = _region_size(client, bar)
    with reader.trying("whether there is an expansion ROM"):
        sizes[EXPANSION_ROM] = _region_size(client, Region.ROM)
    space = ConfigSpace.parse(raw, sizes)
    state = reader.state(space) if space.is_virtio else None
    return Report(SLOT, space, state, tuple(reader.problems))


def _region_size(client: Regions, index: int) -> int:
    info = client.region_info(index)
    if info.fd is not None:
        os.close(info.fd)
    return info.size


class _Reader:
    """Reads what can be read, and notes what cannot."""

    def __init__(self, client: Regions) -> None:
        self._client = client
        self._gone = False
        self.problems: list[str] = []

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Note a failure to learn ``what``, and go on. Where the server is gone, one note is enough."""
        try:
            yield
        except NodmaError as error:
            if not self._gone:
                self.problems.append(f"{what} is not known: {error}")
            self._gone = self._gone or isinstance(error, Disconnected)

    def state(self, space: ConfigSpace) -> VirtioState | None:
        """Read the virtio registers."""
        common = space.virtio(CfgType.COMMON)
        if common is None:
            self.problems.append("features, status and queues are not known: there is no common configuration")
            return None
        registers = _Registers(self._client, common)
        state = VirtioState()
        with self.trying("the device status"):
            state.status = registers.get(CommonCfg.device_status)
        with self.trying("what features are offered"):
            state.features = _features(registers)
        with self.trying("the number of queues"):
            state.queue_count = registers.get(CommonCfg.num_queues)
        with self.trying("what queues there are"):
            state.queues = _queues(registers, state.queue_count or 0)
        if (state.features or 0) & Feature.DMB.mask:
            with self.trying("which region is VIRTIO_F_DMB's"):
                state.dmb_shm_id = registers.get(DmbCommonCfg.dmb_shm_id)
        device = space.virtio(CfgType.DEVICE)
        if space.device_type == DeviceType.BLOCK and device is not None:
            with self.trying("the block device configuration"):
                state.block = _block_config(self._client, registers, device)
        return state


class _Registers:
    """The common configuration."""

    def __init__(self, client: Regions, common: VirtioCapability) -> None:
        self._client = client
        self._common = common

    def get(self, field: Field[int]) -> int:
        return int.from_bytes(self._client.region_read(self._common.bar, self._at(field), field.size), "little")

    def set(self, field: Field[int], value: int) -> None:
        self._client.region_write(self._common.bar, self._at(field), value.to_bytes(field.size, "little"))

    def _at(self, field: Field[int]) -> int:
        if field.end > self._common.length:
            raise ProtocolError(f"{field.name} lies beyond the {self._common.length} bytes of the common configuration")
        return self._common.offset_in_bar + field.offset

    @contextmanager
    def selecting(self, field: Field[int]) -> Iterator[Callable[[int], None]]:
        """Return what sets a selector, which has at the end what it had before."""
        found = self.get(field)
        try:
            yield lambda value: self.set(field, value)
        finally:
            self.set(field, found)


def _features(registers: _Registers) -> int:
    offered = 0
    with registers.selecting(CommonCfg.device_feature_select) as select:
        for word in range(FEATURE_BITS // _FEATURE_WORD_BITS):
            select(word)
            offered |= registers.get(CommonCfg.device_feature) << word * _FEATURE_WORD_BITS
    return offered


def _queues(registers: _Registers, count: int) -> tuple[QueueState, ...]:
    queues = []
    with registers.selecting(CommonCfg.queue_select) as select:
        for index in range(min(count, MAX_QUEUES)):
            select(index)
            size, enabled = registers.get(CommonCfg.queue_size), registers.get(CommonCfg.queue_enable)
            queues.append(QueueState(index, size, bool(enabled)))
    return tuple(queues)


def _block_config(client: Regions, registers: _Registers, device: VirtioCapability) -> BlkConfig:
    """Read the device configuration, consistently (2.5.1)."""
    count = min(BlkConfig.size, device.length)
    for _ in range(_CONFIG_TRIES):
        generation = registers.get(CommonCfg.config_generation)
        raw = client.region_read(device.bar, device.offset_in_bar, count)
        if registers.get(CommonCfg.config_generation) == generation:
            return BlkConfig(raw.ljust(BlkConfig.size, b"\0"))
    raise ProtocolError(f"it changed each of the {_CONFIG_TRIES} times that it was read")
