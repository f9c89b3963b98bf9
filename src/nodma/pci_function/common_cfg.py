"""The common configuration structure (virtio 1.4, 4.1.4.3): registers in front of a VirtioCore.

A driver reads and writes it register by register: that is the path to be quick on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nodma.pci_function.queues import VirtQueue
from nodma.pci_function.virtio import VirtioCore
from nodma.spec.dmb import DmbCommonCfg
from nodma.spec.virtio_pci import NO_VECTOR, CommonCfg

_WORD: Final = 0xFFFFFFFF
_WRITABLE: Final = tuple(field for field in CommonCfg.fields if field.writable)


class CommonRegisters:
    """Reads and writes of any width: a register is written where a write touches it, the rest of it kept."""

    def __init__(self, core: VirtioCore) -> None:
        self._core = core
        self.reset()
        self._getters: dict[str, Callable[[], int]] = {
            "device_feature_select": lambda: self._device_select,
            "device_feature": lambda: _feature_word(core.offered, self._device_select),
            "driver_feature_select": lambda: self._driver_select,
            "driver_feature": lambda: _feature_word(core.accepted, self._driver_select),
            "config_msix_vector": lambda: core.config_vector,
            "num_queues": lambda: len(core.queues),
            "device_status": core.read_status,
            "config_generation": lambda: core.config_generation,
            "queue_select": lambda: self._queue_select,
            "queue_size": lambda: self._of_queue("size"),
            "queue_msix_vector": lambda: self._of_queue("vector", NO_VECTOR),
            "queue_enable": lambda: self._of_queue("enabled"),
            "queue_notify_off": lambda: self._queue_select if self._queue() else 0,
            "queue_desc": lambda: self._of_queue("desc"),
            "queue_driver": lambda: self._of_queue("driver"),
            "queue_device": lambda: self._of_queue("device"),
            "queue_notif_config_data": lambda: 0,
            "queue_reset": lambda: 0,
            "admin_queue_index": lambda: 0,
            "admin_queue_num": lambda: 0,
            DmbCommonCfg.dmb_shm_id.name: lambda: core.profile.shm_id or 0,
        }
        self._fields = core.profile.common.fields
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
        self._readers = {(field.offset, field.size): self._getters[field.name] for field in self._fields}
        self._writers = {(field.offset, field.size): self._setters[field.name] for field in _WRITABLE}

    def reset(self) -> None:
        """Forget the selectors."""
        self._device_select = self._driver_select = self._queue_select = 0

    def read(self, offset: int, count: int) -> bytes:
        """Read ``count`` bytes; after the structure there are zeros."""
        if getter := self._readers.get((offset, count)):
            return int(getter()).to_bytes(count, "little")
        touched = [field for field in self._fields if field.offset < offset + count and offset < field.end]
        if not touched:
            return bytes(count)
        found = b"".join(int(self._getters[field.name]()).to_bytes(field.size, "little") for field in touched)
        begin = offset - touched[0].offset
        return found[begin : begin + count].ljust(count, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Write what of the bytes is writable."""
        if setter := self._writers.get((offset, len(data))):
            setter(int.from_bytes(data, "little"))
            return
        end = offset + len(data)
        for field in _WRITABLE:
            if field.offset < end and offset < field.end:
                raw = bytearray(self.read(field.offset, field.size))
                for at in range(max(offset, field.offset), min(end, field.end)):
                    raw[at - field.offset] = data[at - offset]
                self._setters[field.name](int.from_bytes(raw, "little"))

    def _queue(self) -> VirtQueue | None:
        queues = self._core.queues
        return queues[self._queue_select] if self._queue_select < len(queues) else None

    def _of_queue(self, name: str, otherwise: int = 0) -> int:
        """Return what is known of the selected queue, or ``otherwise`` if there is none (4.1.4.3.1)."""
        queue = self._queue()
        return getattr(queue, name) if queue else otherwise

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


def _feature_word(features: int, select: int) -> int:
    """Return 32 of the feature bits; there are 64 of them."""
    return features >> 32 * select & _WORD if select < 2 else 0
