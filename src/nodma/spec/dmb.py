"""VIRTIO_F_DMB's numbers. All of them are provisional: virtio-spec issue 248 is a proposal, and assigns none.

They stand here and nowhere else, so that one edit follows the specification when it has them.
"""

from __future__ import annotations

from typing import Final

from nodma.spec.layout import le16
from nodma.spec.virtio_pci import CommonCfg

FEATURE_BIT: Final = 42
"""Provisional: the first bit that virtio 1.4 (2.2) leaves for extensions; 24 to 41 are taken."""

SHM_ID: Final = 0xDB
"""Provisional: the id of the region among a device's shared memory; no device type defines it (DMB-V2)."""

SHM_ID_MASK: Final = 0xFF
"""Of ``dmb_shm_id`` as many bits count as an id in a capability has."""


class DmbCommonCfg(CommonCfg):
    """The common configuration with VIRTIO_F_DMB. Provisional: a register after those of virtio 1.4 (4.1.4.3)."""

    dmb_shm_id = le16()
