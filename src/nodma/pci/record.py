"""What is known of a function as plain dicts and lists, for ``--json``. Numbers are numbers, bytes are hex."""

from __future__ import annotations

from typing import Any, Final

from nodma.pci.config import Bar, CapabilityView, VirtioCapability
from nodma.pci.describe import extended_summary, summary
from nodma.pci.report import Report, VirtioState, device_name, feature_names
from nodma.pci.text import status_names
from nodma.spec.layout import Layout
from nodma.spec.profiles import SELF
from nodma.spec.virtio_pci import CfgType

FORMAT: Final = 2
"""Of the objects that :func:`to_json` makes; another number where a key changes its meaning or goes."""


def to_json(report: Report) -> dict[str, Any]:
    """Return all that is known; keys of what is not known are null."""
    space = report.space
    return {
        "slot": report.slot,
        "device": device_name(space),
        "device_type": space.device_type,
        "virtual_function": space.virtual_function,
        "header": _fields(space.header),
        "bars": [_bar(bar) for bar in space.bars],
        "capabilities": [_capability(cap) for cap in space.capabilities],
        "extended_capabilities": [
            {"offset": cap.offset, "id": cap.cap_id, "name": extended_summary(cap)} for cap in space.extended
        ],
        "truncated": space.truncated,
        "virtio": _state(report.state, space.device_type) if report.state else None,
        "findings": [
            {"clause": finding.clause, "severity": finding.severity, "message": finding.message}
            for finding in report.findings
        ],
        "not_checked": report.not_checked,
        "problems": list(report.problems),
    }


def _bar(bar: Bar) -> dict[str, Any]:
    return {
        "index": bar.index,
        "kind": bar.kind,
        "address": bar.address,
        "is64": bar.is64,
        "prefetchable": bar.prefetchable,
        "size": bar.size,
    }


def _capability(cap: CapabilityView) -> dict[str, Any]:
    record: dict[str, Any] = {
        "offset": cap.offset,
        "id": cap.cap_id,
        "name": summary(cap),
        "fields": _fields(cap.structure),
        "raw": cap.raw.hex(),
    }
    if isinstance(cap, VirtioCapability):
        record["virtio"] = {
            "cfg_type": cap.cfg_type,
            "bar": cap.bar,
            "offset": cap.offset_in_bar,
            "length": cap.length,
        }
        if cap.cfg_type == CfgType.SWIOTLB:
            record["virtio"]["owner"] = None if cap.owner == (SELF, SELF) else list(cap.owner)
    return record


def _state(state: VirtioState, device_type: int | None) -> dict[str, Any]:
    known = state.features is not None
    return {
        "features": state.features,
        "feature_names": list(feature_names(state.features or 0, device_type)) if known else None,
        "status": state.status,
        "status_names": list(status_names(state.status)) if state.status is not None else None,
        "queue_count": state.queue_count,
        "queues": [{"index": queue.index, "size": queue.size, "enabled": queue.enabled} for queue in state.queues],
        "dmb_shm_id": state.dmb_shm_id,
        "block": _fields(state.block) if state.block else None,
    }


def _fields(structure: Layout) -> dict[str, int | str]:
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in structure.items()}
