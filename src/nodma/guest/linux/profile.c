// SPDX-License-Identifier: GPL-2.0
/*
 * The two ways to restrict a device's DMA that were proposed, and all that differs between them: numbers, how
 * the capability that describes the region is known, and what an address is.
 *
 *		swiotlb					dmb
 *	found by	capability 10				the feature
 *	region	capability 10, maybe of another function	capability 8 with the id that dmb_shm_id names
 *	address	bus address inside the region		offset from the region's start, never 0 (DMB-D2)
 *	needs						VERSION_1, ACCESS_PLATFORM (DMB-D1)
 */
#include <linux/io.h>
#include <linux/virtio_pci.h>
#include <uapi/linux/virtio_config.h>

#include "nodma.h"

/* Addresses are those of the bus, wherever the BAR is. */
static dma_addr_t profile_bus_address(const struct nodma_region *region)
{
	return pci_bus_address(region->owner, region->bar) + region->offset;
}

/* dmb_shm_id, a register of the common configuration, if that is long enough to have it. */
static int profile_dmb_shm_id(struct pci_dev *pdev, const struct nodma_claims *claims)
{
	const struct nodma_claim *common = nodma_claim_of(pdev, claims, VIRTIO_PCI_CAP_COMMON_CFG,
							  NODMA_COMMON_DMB_SHM_ID + sizeof(u16));
	void __iomem *at;
	u16 id;

	if (!common)
		return -ENOENT;
	at = pci_iomap_range(pdev, common->bar, common->offset + NODMA_COMMON_DMB_SHM_ID, sizeof(id));
	if (!at)
		return -ENOENT;
	id = ioread16(at);
	pci_iounmap(pdev, at);
	return id & NODMA_DMB_SHM_ID_MASK;
}

/* Addresses are offsets: what they mean does not move with the BAR. */
static dma_addr_t profile_offset_zero(const struct nodma_region *region)
{
	return 0;
}

/* Of a device that offers both, the first is taken: offsets need no trust in where the BAR is. */
const struct nodma_profile nodma_profiles[] = {
	{
		.name = "dmb",
		.feature = NODMA_F_DMB,
		.needs = BIT_ULL(VIRTIO_F_VERSION_1) | BIT_ULL(VIRTIO_F_ACCESS_PLATFORM),
		.by_feature = true,
		.cfg_type = VIRTIO_PCI_CAP_SHARED_MEMORY_CFG,
		.cap_size = sizeof(struct virtio_pci_cap64),
		.unused = 1,
		.id = profile_dmb_shm_id,
		.base = profile_offset_zero,
	},
	{
		.name = "swiotlb",
		.feature = NODMA_F_SWIOTLB,
		.shares = true,
		.cfg_type = NODMA_PCI_CAP_SWIOTLB,
		.cap_size = NODMA_PCI_CAP_LENGTH,
		.base = profile_bus_address,
	},
};

const unsigned int nodma_profile_count = ARRAY_SIZE(nodma_profiles);
