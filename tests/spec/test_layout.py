"""Structures lie on the wire where their specifications have them."""

from __future__ import annotations

import pytest

from nodma.spec import pci, vfio_user, virtio, virtio_blk, virtio_pci
from nodma.spec.layout import Layout, blob, le16, le32, le64, u8


class Sample(Layout):
    first = u8(7)
    second = le16(rw=True)
    third = le32(rw=0xF0)
    fourth = le64()
    tail = blob(3)


class Longer(Sample):
    more = u8()


def test_fields_follow_one_another_without_padding() -> None:
    assert [field.offset for field in Longer.fields] == [0, 1, 3, 7, 15, 18]
    assert (Sample.size, Longer.size, Longer.more.end) == (18, 19, 19)
    assert (Sample.second.writable, Sample.third.writable, Sample.first.writable) == (0xFFFF, 0xF0, 0)


def test_an_instance_is_a_view() -> None:
    memory = bytearray(40)
    sample = Sample(memory, 2)
    sample.fourth = 0x1122334455667788
    assert memory[9:17] == bytes.fromhex("8877665544332211")
    memory[2] = 9
    assert (sample.first, dict(sample.items())["fourth"]) == (9, 0x1122334455667788)
    assert "fourth=0x1122334455667788" in repr(sample)
    assert Sample.new(tail=b"abc").first == 7
    for buffer, base in ((bytes(17), 0), (bytes(30), 13), (bytes(30), -1)):
        with pytest.raises(ValueError, match="Sample needs 18 bytes"):
            Sample(buffer, base)
    with pytest.raises(TypeError, match="has no field nonsense"):
        Sample.new(nonsense=1)


@pytest.mark.parametrize(
    ("field", "offset"),
    [
        (virtio_pci.CommonCfg.device_status, 0x14),
        (virtio_pci.CommonCfg.queue_select, 0x16),
        (virtio_pci.CommonCfg.queue_desc, 0x20),
        (virtio_pci.CommonCfg.queue_device, 0x30),
        (virtio_pci.CommonCfg.admin_queue_num, 0x3E),
        (virtio_pci.VirtioPciCap.offset, 8),
        (virtio_pci.VirtioPciCap.length, 12),
        (virtio_pci.VirtioPciNotifyCap.notify_off_multiplier, 16),
        (virtio_pci.VirtioPciCfgCap.pci_cfg_data, 16),
        (virtio_pci.VirtioPciCap64.length_hi, 20),
        (virtio_pci.SharedSwiotlbCap.device, 16),
        (virtio_blk.BlkConfig.blk_size, 20),
        (virtio_blk.BlkConfig.writeback, 32),
        (virtio_blk.BlkConfig.max_discard_sectors, 36),
        (virtio_blk.BlkConfig.write_zeroes_may_unmap, 56),
        (virtio.Descriptor.flags, 12),
        (pci.Type0Header.bar0, 0x10),
        (pci.Type0Header.capabilities, 0x34),
        (pci.Type0Header.interrupt_pin, 0x3D),
        (pci.MsixCapability.table, 4),
        (pci.ExpressCapability.device_control, 8),
        (pci.ExpressCapability.device_caps2, 0x24),
        (vfio_user.Header.error, 12),
        (vfio_user.DmaMap.size_bytes, 24),
        (vfio_user.RegionInfo.offset, 24),
        (vfio_user.IrqSet.count, 16),
        (vfio_user.MultiWrite.data, 16),
    ],
)
def test_offsets_are_those_of_the_specifications(field: object, offset: int) -> None:
    assert field.offset == offset  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (virtio_pci.CommonCfg, 64),
        (virtio_pci.SharedSwiotlbCap, 20),
        (virtio_pci.VirtioPciCap64, 24),
        (virtio_blk.BlkConfig, 60),
        (virtio_blk.BlkRequest, 16),
        (virtio_blk.BlkRange, 16),
        (virtio.Descriptor, 16),
        (virtio.UsedElem, 8),
        (pci.Type0Header, 64),
        (pci.MsixCapability, 12),
        (pci.MsixEntry, 16),
        (pci.ExpressCapability, 60),
        (vfio_user.Header, 16),
        (vfio_user.DmaMap, 32),
        (vfio_user.DmaUnmap, 24),
        (vfio_user.RegionInfo, 32),
        (vfio_user.IrqSet, 20),
        (vfio_user.RegionAccess, 16),
        (vfio_user.MultiWrite, 24),
    ],
)
def test_sizes_are_those_of_the_specifications(layout: type[Layout], size: int) -> None:
    assert layout.size == layout.codec.size == size
