// SPDX-License-Identifier: GPL-2.0
/*
 * The region: find capability 10, and trust nothing of what it says before it is checked. Configuration
 * space is the device's word, and in a confidential guest the device is not trusted.
 */
#include <linux/virtio_pci.h>

#include "nodma.h"

/* One of virtio's vendor capabilities, as far as all of them agree. */
struct claim {
	u8 length;		/* of the capability itself */
	u8 type;
	u8 bar;
	u64 begin;
	u64 end;
};

static void read_claim(struct pci_dev *pdev, int at, struct claim *claim)
{
	u32 offset, length;

	pci_read_config_byte(pdev, at + offsetof(struct virtio_pci_cap, cap_len), &claim->length);
	pci_read_config_byte(pdev, at + offsetof(struct virtio_pci_cap, cfg_type), &claim->type);
	pci_read_config_byte(pdev, at + offsetof(struct virtio_pci_cap, bar), &claim->bar);
	pci_read_config_dword(pdev, at + offsetof(struct virtio_pci_cap, offset), &offset);
	pci_read_config_dword(pdev, at + offsetof(struct virtio_pci_cap, length), &length);
	claim->begin = offset;
	claim->end = (u64)offset + length;
	if (claim->type == VIRTIO_PCI_CAP_SHARED_MEMORY_CFG && claim->length >= sizeof(struct virtio_pci_cap64)) {
		u32 offset_hi, length_hi;

		pci_read_config_dword(pdev, at + offsetof(struct virtio_pci_cap64, offset_hi), &offset_hi);
		pci_read_config_dword(pdev, at + offsetof(struct virtio_pci_cap64, length_hi), &length_hi);
		claim->begin |= (u64)offset_hi << 32;
		claim->end = claim->begin + (length | (u64)length_hi << 32);
	}
}

static bool overlaps(const struct nodma_region *region, u64 begin, u64 end)
{
	return begin < region->offset + region->length && region->offset < end;
}

/* Say no, and why. */
#define refuse(pdev, fmt, ...)								\
({											\
	pci_warn(pdev, "nodma: no bouncing: capability 10 " fmt "\n", ##__VA_ARGS__);	\
	-EINVAL;									\
})

/* What capability 10 says, held against the BAR that it names. */
static int check_bounds(struct pci_dev *pdev, const struct nodma_region *region)
{
	if (region->bar >= PCI_STD_NUM_BARS)
		return refuse(pdev, "names BAR %d, and there are %d", region->bar, PCI_STD_NUM_BARS);
	if (!(pci_resource_flags(pdev, region->bar) & IORESOURCE_MEM) || !pci_resource_len(pdev, region->bar))
		return refuse(pdev, "names BAR %d, which is not memory", region->bar);
	if (pci_resource_flags(pdev, region->bar) & IORESOURCE_UNSET)
		return refuse(pdev, "names BAR %d, which has no address", region->bar);
	if (region->length < NODMA_REGION_MIN)
		return refuse(pdev, "has %llu bytes, less than %lu", region->length, NODMA_REGION_MIN);
	if (region->offset + region->length > pci_resource_len(pdev, region->bar))
		return refuse(pdev, "ends at %#llx of BAR %d, which ends at %#llx", region->offset + region->length,
			      region->bar, (u64)pci_resource_len(pdev, region->bar));
	if (!IS_ALIGNED(region->offset, SZ_4K))
		return refuse(pdev, "begins at %#llx, not on a page", region->offset);
	return 0;
}

/* The longer form of the capability can name another function's BAR. */
static int check_owner(struct pci_dev *pdev, int at, const struct claim *claim)
{
	u8 device, function;

	if (claim->length < NODMA_PCI_CAP_LENGTH)
		return refuse(pdev, "has %u bytes, less than %u", claim->length, NODMA_PCI_CAP_LENGTH);
	if (claim->length < NODMA_PCI_CAP_SHARED_LENGTH)
		return 0;
	pci_read_config_byte(pdev, at + NODMA_PCI_CAP_DEVICE, &device);
	pci_read_config_byte(pdev, at + NODMA_PCI_CAP_FUNCTION, &function);
	if (device != NODMA_PCI_CAP_SELF || function != NODMA_PCI_CAP_SELF)
		return refuse(pdev, "names the region of %02x.%u, and regions are not shared by this version", device,
			      function);
	return 0;
}

/* The MSI-X table and its pending bits must not lie in the region. */
static int check_msix(struct pci_dev *pdev, const struct nodma_region *region)
{
	u32 table, pba;
	u16 control;
	u64 vectors, begin;

	if (!pdev->msix_cap)
		return 0;
	pci_read_config_word(pdev, pdev->msix_cap + PCI_MSIX_FLAGS, &control);
	pci_read_config_dword(pdev, pdev->msix_cap + PCI_MSIX_TABLE, &table);
	pci_read_config_dword(pdev, pdev->msix_cap + PCI_MSIX_PBA, &pba);
	vectors = (control & PCI_MSIX_FLAGS_QSIZE) + 1;
	begin = table & PCI_MSIX_TABLE_OFFSET;
	if ((table & PCI_MSIX_TABLE_BIR) == region->bar && overlaps(region, begin, begin + vectors * PCI_MSIX_ENTRY_SIZE))
		return refuse(pdev, "lies over the MSI-X table");
	begin = pba & PCI_MSIX_PBA_OFFSET;
	if ((pba & PCI_MSIX_PBA_BIR) == region->bar && overlaps(region, begin, begin + DIV_ROUND_UP(vectors, 8)))
		return refuse(pdev, "lies over the MSI-X pending bits");
	return 0;
}

/*
 * No other structure may lie in the region. Where the BAR holds another one, virtio_pci has claimed all of
 * it; where it holds none, nobody may have.
 */
static int check_others(struct pci_dev *pdev, struct nodma_region *region)
{
	bool shared = false;
	struct claim other;
	int at, error;

	for (at = pci_find_capability(pdev, PCI_CAP_ID_VNDR); at; at = pci_find_next_capability(pdev, at, PCI_CAP_ID_VNDR)) {
		read_claim(pdev, at, &other);
		if (other.type == NODMA_PCI_CAP_SWIOTLB || other.type == VIRTIO_PCI_CAP_PCI_CFG || other.bar != region->bar)
			continue;
		if (overlaps(region, other.begin, other.end))
			return refuse(pdev, "lies over the structure of type %u", other.type);
		shared = shared || other.type <= VIRTIO_PCI_CAP_DEVICE_CFG;
	}
	if (shared)
		return 0;
	error = pci_request_region(pdev, region->bar, "nodma");
	if (error)
		return refuse(pdev, "names BAR %d, which something else has claimed", region->bar);
	region->claimed = true;
	return 0;
}

/**
 * nodma_region_find() - find the region that a function offers for its DMA
 * @pdev: the function, enabled
 * @region: filled
 *
 * Claims the BAR; nodma_region_release() gives it back.
 *
 * Return: 0, -ENODEV if the function offers none, -EINVAL if what it says cannot be; the log says why.
 */
int nodma_region_find(struct pci_dev *pdev, struct nodma_region *region)
{
	struct claim claim;
	int at, error;

	memset(region, 0, sizeof(*region));
	for (at = pci_find_capability(pdev, PCI_CAP_ID_VNDR); at; at = pci_find_next_capability(pdev, at, PCI_CAP_ID_VNDR)) {
		read_claim(pdev, at, &claim);
		if (claim.type == NODMA_PCI_CAP_SWIOTLB)
			break;	/* of several, the first counts */
	}
	if (!at)
		return -ENODEV;
	region->bar = claim.bar;
	region->offset = claim.begin;
	region->length = claim.end - claim.begin;
	error = check_owner(pdev, at, &claim);
	if (!error)
		error = check_bounds(pdev, region);
	if (!error)
		error = check_msix(pdev, region);
	if (!error)
		error = check_others(pdev, region);
	if (!error && !(pci_resource_flags(pdev, region->bar) & IORESOURCE_PREFETCH))
		pci_warn(pdev, "nodma: BAR %d is not prefetchable: it may be mapped uncached, and slow\n", region->bar);
	return error;
}

void nodma_region_release(struct pci_dev *pdev, struct nodma_region *region)
{
	if (region->claimed)
		pci_release_region(pdev, region->bar);
	region->claimed = false;
}
