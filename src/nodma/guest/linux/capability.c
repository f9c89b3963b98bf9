// SPDX-License-Identifier: GPL-2.0
/* Virtio's vendor capabilities, read and taken apart. What they say is the device's word. */
#include <linux/overflow.h>
#include <linux/virtio_pci.h>

#include "nodma.h"

static void claim_read(struct pci_dev *pdev, int at, struct nodma_claim *claim)
{
	u32 offset, length;

	pci_read_config_byte(pdev, at + offsetof(struct virtio_pci_cap, cap_len), &claim->size);
	pci_read_config_byte(pdev, at + offsetof(struct virtio_pci_cap, cfg_type), &claim->type);
	pci_read_config_byte(pdev, at + offsetof(struct virtio_pci_cap, bar), &claim->bar);
	pci_read_config_byte(pdev, at + offsetof(struct virtio_pci_cap, id), &claim->id);
	pci_read_config_dword(pdev, at + offsetof(struct virtio_pci_cap, offset), &offset);
	pci_read_config_dword(pdev, at + offsetof(struct virtio_pci_cap, length), &length);
	claim->offset = offset;
	claim->length = length;
	claim->device = NODMA_PCI_CAP_SELF;
	claim->function = NODMA_PCI_CAP_SELF;
	if (claim->type == NODMA_PCI_CAP_SWIOTLB && claim->size >= NODMA_PCI_CAP_SHARED_LENGTH) {
		pci_read_config_byte(pdev, at + NODMA_PCI_CAP_DEVICE, &claim->device);
		pci_read_config_byte(pdev, at + NODMA_PCI_CAP_FUNCTION, &claim->function);
	}
	if (claim->type == VIRTIO_PCI_CAP_SHARED_MEMORY_CFG && claim->size >= sizeof(struct virtio_pci_cap64)) {
		u32 offset_hi, length_hi;

		pci_read_config_dword(pdev, at + offsetof(struct virtio_pci_cap64, offset_hi), &offset_hi);
		pci_read_config_dword(pdev, at + offsetof(struct virtio_pci_cap64, length_hi), &length_hi);
		claim->offset |= (u64)offset_hi << 32;
		claim->length |= (u64)length_hi << 32;
	}
}

/* The first byte after what a capability describes; all ones if it wraps. */
u64 nodma_claim_end(const struct nodma_claim *claim)
{
	u64 end;

	return check_add_overflow(claim->offset, claim->length, &end) ? U64_MAX : end;
}

/**
 * nodma_claims_read() - read a function's vendor capabilities
 * @pdev: the function
 * @claims: filled
 *
 * Return: 0, or -E2BIG if there are more than configuration space has room for: their list is a circle.
 */
int nodma_claims_read(struct pci_dev *pdev, struct nodma_claims *claims)
{
	int at;

	claims->count = 0;
	for (at = pci_find_capability(pdev, PCI_CAP_ID_VNDR); at; at = pci_find_next_capability(pdev, at, PCI_CAP_ID_VNDR)) {
		if (claims->count == NODMA_CLAIMS_MAX)
			return -E2BIG;
		claim_read(pdev, at, &claims->claim[claims->count++]);
	}
	return 0;
}

/**
 * nodma_claim_of() - find the structure of a type that virtio_pci uses
 * @pdev: the function
 * @claims: its capabilities
 * @type: which
 * @length: bytes that it has at least
 *
 * Return: the first one, or NULL if that does not lie in its BAR, or not at a multiple of 4: some machines fault where an
 * access is not aligned.
 */
const struct nodma_claim *nodma_claim_of(struct pci_dev *pdev, const struct nodma_claims *claims, u8 type, u64 length)
{
	unsigned int i;

	for (i = 0; i < claims->count; i++) {
		const struct nodma_claim *claim = &claims->claim[i];

		if (claim->type != type || claim->bar >= PCI_STD_NUM_BARS || !pci_resource_len(pdev, claim->bar))
			continue;
		if (!IS_ALIGNED(claim->offset, sizeof(u32)) || claim->length < length ||
		    nodma_claim_end(claim) > pci_resource_len(pdev, claim->bar))
			return NULL;
		return claim;
	}
	return NULL;
}
