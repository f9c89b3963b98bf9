"""The common configuration structure (virtio 1.4, 4.1.4.3): registers in front of a VirtioCore."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nodma.function.virtio import VirtioCore, VirtQueue
from nodma.spec.dmb import DmbCommonCfg
from nodma.spec.virtio_pci import NO_VECTOR, CommonCfg

_WORD: Final = 0xFFFFFFFF
_WRITABLE: Final = tuple(field for field in CommonCfg.fields if field.writable)


class CommonRegisters:
    """Reads and writes of any width: a register is written where a write touches it, the rest of it kept."""

    def __init__(self, core: VirtioCore) -> None:
        self._core = core
        self.reset()
        self._setters: dict[str, Callable[[int], None]] = {
            "device_feature_select": self._set_device_feature_select,
            "driver_feature_select": self._set_driver_feature_select,
            "driver_feature": lambda value: core.accept(self._driver_select, value),
            "config_msix_vector": self._set_config_vector,
            "device_status": self._set_status,
            "queue_select": self._set_queue_select,
            "queue_size": self._set_queue_size,
            "queue_msix_vector": self._set_queue_vector,
            "queue_enable": self._set_queue_enable,
            "queue_desc": lambda value: self._set_queue_address("desc", value),
            "queue_driver": lambda value: self._set_queue_address("driver", value),
            "queue_device": lambda value: self._set_queue_address("device", value),
            "queue_reset": lambda _: None,  # VIRTIO_F_RING_RESET is not offered
        }

    def reset(self) -> None:
        """Forget the selectors."""
        self._device_select = self._driver_select = self._queue_select = 0

    def read(self, offset: int, count: int) -> bytes:
        """Read ``count`` bytes; behind the structure there are zeros."""
        return bytes(self._structure())[offset : offset + count].ljust(count, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Write what of the bytes is writable."""
        end = offset + len(data)
        for field in _WRITABLE:
            if field.offset < end and offset < field.end:
                raw = bytearray(self.read(field.offset, field.size))
                for at in range(max(offset, field.offset), min(end, field.end)):
                    raw[at - field.offset] = data[at - offset]
                self._setters[field.name](int.from_bytes(raw, "little"))

    def _structure(self) -> CommonCfg:
        core = self._core
        queue = self._queue()
        named = {} if core.profile.shm_id is None else {DmbCommonCfg.dmb_shm_id.name: core.profile.shm_id}
        return core.profile.common.new(
            **named,
            device_feature_select=self._device_select,
            device_feature=core.offered >> 32 * self._device_select & _WORD if self._device_select < 2 else 0,
            driver_feature_select=self._driver_select,
            driver_feature=core.accepted >> 32 * self._driver_select & _WORD if self._driver_select < 2 else 0,
            config_msix_vector=core.config_vector,
            num_queues=len(core.queues),
            device_status=core.status,
            config_generation=core.config_generation,
            queue_select=self._queue_select,
            queue_size=queue.size if queue else 0,
            queue_msix_vector=queue.vector if queue else NO_VECTOR,
            queue_enable=int(queue.enabled) if queue else 0,
            queue_notify_off=self._queue_select if queue else 0,
            queue_desc=queue.desc if queue else 0,
            queue_driver=queue.driver if queue else 0,
            queue_device=queue.device if queue else 0,
        )

    def _queue(self) -> VirtQueue | None:
        queues = self._core.queues
        return queues[self._queue_select] if self._queue_select < len(queues) else None

    def _set_device_feature_select(self, value: int) -> None:
        self._device_select = value

    def _set_driver_feature_select(self, value: int) -> None:
        self._driver_select = value

    def _set_queue_select(self, value: int) -> None:
        self._queue_select = value

    def _set_status(self, value: int) -> None:
        if value == 0:
            self.reset()
        self._core.write_status(value)

    def _vector(self, value: int) -> int:
        """A vector that does not exist cannot be mapped: the driver reads NO_VECTOR back (4.1.5.1.2)."""
        return value if value < self._core.interrupts.vectors else NO_VECTOR

    def _set_config_vector(self, value: int) -> None:
        self._core.config_vector = self._vector(value)

    def _set_queue_vector(self, value: int) -> None:
        if queue := self._queue():
            queue.vector = self._vector(value)

    def _set_queue_size(self, value: int) -> None:
        queue = self._queue()
        if queue and not queue.enabled and 0 < value <= queue.queue.size and not value & (value - 1):
            queue.size = value

    def _set_queue_address(self, part: str, value: int) -> None:
        queue = self._queue()
        if queue and not queue.enabled:
            setattr(queue, part, value)

    def _set_queue_enable(self, value: int) -> None:
        queue = self._queue()
        if queue and value == 1:
            self._core.enable(queue)
