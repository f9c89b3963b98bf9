// SPDX-License-Identifier: GPL-2.0
/*
 * The region: find the capability that describes it, and trust nothing that it says before it is checked.
 * Configuration space is the device's word, and in a confidential guest the device is not trusted.
 */
#include <linux/virtio_pci.h>

#include "nodma.h"

/* How many functions a PCI device has, and how many devices a bus. */
#define FUNCTIONS	8
#define DEVICES		32

static bool region_overlaps(const struct nodma_region *region, u64 begin, u64 end)
{
	return begin < region->offset + region->length && region->offset < end;
}

static bool region_borrowed(const struct nodma_region *region)
{
	return region->owner != region->pdev;
}

/* Say no, and why. */
#define refuse(region, fmt, ...)								\
({												\
	const struct nodma_region *_region = region;						\
												\
	pci_warn(_region->pdev, "nodma: no bouncing: capability %u %s%s%s" fmt "\n",		\
		 _region->profile->cfg_type, region_borrowed(_region) ? "names the region of " : "",	\
		 region_borrowed(_region) ? pci_name(_region->owner) : "", region_borrowed(_region) ? ", which " : "", ##__VA_ARGS__); \
	-EINVAL;										\
})

/*
 * A memory BAR without an address. Where a bridge has no room for it Linux forgets what it was, so the register is asked: it
 * still says that it is memory of 64 bits, or prefetchable.
 */
static bool bar_unassigned(struct pci_dev *pdev, u8 bar, unsigned long flags)
{
	u32 value;

	if (flags & IORESOURCE_MEM)
		return flags & IORESOURCE_UNSET || !pci_resource_start(pdev, bar);
	if (flags & IORESOURCE_IO || pci_read_config_dword(pdev, PCI_BASE_ADDRESS_0 + sizeof(value) * bar, &value))
		return false;
	return !(value & PCI_BASE_ADDRESS_SPACE_IO) &&
	       value & (PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH);
}

/* What the capability says, held against the BAR that it names. */
static int region_check_bounds(const struct nodma_region *region, const struct nodma_claim *claim)
{
	struct pci_dev *owner = region->owner;
	u64 end = nodma_claim_end(claim);
	unsigned long flags;

	if (region->bar >= PCI_STD_NUM_BARS)
		return refuse(region, "names BAR %d, and there are %d", region->bar, PCI_STD_NUM_BARS);
	flags = pci_resource_flags(owner, region->bar);
	if (bar_unassigned(owner, region->bar, flags))
		return refuse(region, "names BAR %d, which was given no address: its bridge has no room for it",
			      region->bar);
	if (!(flags & IORESOURCE_MEM) || !pci_resource_len(owner, region->bar))
		return refuse(region, "names BAR %d, which is not a memory BAR", region->bar);
	if (region->length < NODMA_REGION_MIN)
		return refuse(region, "is of %llu bytes, fewer than %lu", region->length, NODMA_REGION_MIN);
	if (end > pci_resource_len(owner, region->bar))
		return refuse(region, "ends at %#llx of BAR %d, which ends at %#llx", end, region->bar,
			      (u64)pci_resource_len(owner, region->bar));
	if (!IS_ALIGNED(region->offset, SZ_4K))
		return refuse(region, "begins at %#llx, which is not page-aligned", region->offset);
	return 0;
}

/* The MSI-X table and its pending bits must not lie in the region. */
static int region_check_msix(const struct nodma_region *region)
{
	struct pci_dev *owner = region->owner;
	u32 table, pba;
	u16 control;
	u64 vectors, begin;

	if (!owner->msix_cap)
		return 0;
	pci_read_config_word(owner, owner->msix_cap + PCI_MSIX_FLAGS, &control);
	pci_read_config_dword(owner, owner->msix_cap + PCI_MSIX_TABLE, &table);
	pci_read_config_dword(owner, owner->msix_cap + PCI_MSIX_PBA, &pba);
	vectors = (control & PCI_MSIX_FLAGS_QSIZE) + 1;
	begin = table & PCI_MSIX_TABLE_OFFSET;
	if ((table & PCI_MSIX_TABLE_BIR) == region->bar && region_overlaps(region, begin, begin + vectors * PCI_MSIX_ENTRY_SIZE))
		return refuse(region, "lies over the MSI-X table");
	begin = pba & PCI_MSIX_PBA_OFFSET;
	if ((pba & PCI_MSIX_PBA_BIR) == region->bar && region_overlaps(region, begin, begin + DIV_ROUND_UP(vectors, 8)))
		return refuse(region, "lies over the MSI-X pending bits");
	return 0;
}

/* Whether two capabilities say the same of a region. */
static bool claims_agree(const struct nodma_claim *one, const struct nodma_claim *other)
{
	return one->bar == other->bar && one->offset == other->offset && one->length == other->length &&
	       one->device == other->device && one->function == other->function &&
	       (one->size < NODMA_PCI_CAP_SHARED_LENGTH) == (other->size < NODMA_PCI_CAP_SHARED_LENGTH);
}

/* Whether a capability is of the kind that the profile has for its region. */
static bool claim_describes(const struct nodma_profile *profile, const struct nodma_claim *claim, int id)
{
	return claim->type == profile->cfg_type && (!profile->id || claim->id == id);
}

/* No other structure may lie in the region. */
static int region_check_others(struct nodma_region *region, const struct nodma_claims *claims, int id)
{
	unsigned int i;

	for (i = 0; i < claims->count; i++) {
		const struct nodma_claim *other = &claims->claim[i];

		if (claim_describes(region->profile, other, id) || other->type == VIRTIO_PCI_CAP_PCI_CFG || other->bar != region->bar)
			continue;
		if (region_overlaps(region, other->offset, nodma_claim_end(other)))
			return refuse(region, "lies over the structure of type %u", other->type);
		region->beside = region->beside || other->type <= VIRTIO_PCI_CAP_DEVICE_CFG;
	}
	return 0;
}

/* Find what region->owner says of a region: the one capability, or several that say the same. */
static int region_find_claim(const struct nodma_region *region, const struct nodma_claims *claims, int id,
		      const struct nodma_claim **found)
{
	unsigned int i;

	*found = NULL;
	for (i = 0; i < claims->count; i++) {
		const struct nodma_claim *claim = &claims->claim[i];

		if (!claim_describes(region->profile, claim, id))
			continue;
		if (*found && !claims_agree(*found, claim))
			return refuse(region, "is there more than once, with different contents");
		*found = claim;
	}
	if (!*found)
		return -ENODEV;
	if ((*found)->size < region->profile->cap_size)
		return refuse(region, "is %u bytes long, shorter than %u", (*found)->size, region->profile->cap_size);
	return 0;
}

static bool claim_names_itself(struct pci_dev *pdev, const struct nodma_claim *claim)
{
	bool this_device = claim->device == NODMA_PCI_CAP_SELF || claim->device == PCI_SLOT(pdev->devfn);

	if (claim->function == NODMA_PCI_CAP_SELF)
		return claim->device == NODMA_PCI_CAP_SELF;
	return this_device && claim->function == PCI_FUNC(pdev->devfn);
}

/* Take what the owner says of its region, if it can be. */
static int region_accept(struct nodma_region *region, const struct nodma_claims *claims, const struct nodma_claim *claim,
		  int id)
{
	region->bar = claim->bar;
	region->offset = claim->offset;
	region->length = claim->length;
	region->shared = region->profile->shares && claim->size >= NODMA_PCI_CAP_SHARED_LENGTH;
	return region_check_bounds(region, claim) ?: region_check_msix(region) ?: region_check_others(region, claims, id);
}

/* The function on the same bus that a capability names; a reference is taken. */
static struct pci_dev *region_named_owner(const struct nodma_region *region, const struct nodma_claim *claim)
{
	unsigned int device = claim->device == NODMA_PCI_CAP_SELF ? PCI_SLOT(region->pdev->devfn) : claim->device;
	struct pci_dev *owner = NULL;

	if (device < DEVICES && claim->function < FUNCTIONS)
		owner = pci_get_slot(region->pdev->bus, PCI_DEVFN(device, claim->function));
	if (!owner)
		refuse(region, "names the region of %02x.%x, and there is no such function", device, claim->function);
	return owner;
}

/*
 * The region lies in another function's BAR. That function must say so itself, and that it lets others use it: this
 * ends chains and circles, and no function becomes an owner by another's word.
 */
static int region_borrow(struct nodma_region *region, const struct nodma_claim *claim)
{
	struct pci_dev *owner = region_named_owner(region, claim);
	const struct nodma_claim *theirs;
	struct nodma_claims claims;
	int error;

	if (!owner)
		return -EINVAL;
	pci_dev_put(region->owner);
	region->owner = owner;
	if (owner->vendor != PCI_VENDOR_ID_REDHAT_QUMRANET)
		return refuse(region, "is not a virtio function");
	if (nodma_claims_read(owner, &claims))
		return refuse(region, "has a list of capabilities that does not end");
	error = region_find_claim(region, &claims, 0, &theirs);
	if (error)
		return error == -ENODEV ? refuse(region, "has none") : error;
	if (!claim_names_itself(owner, theirs))
		return refuse(region, "has none itself: it names that of %02x.%x", theirs->device, theirs->function);
	if (theirs->size < NODMA_PCI_CAP_SHARED_LENGTH)
		return refuse(region, "does not share it");
	error = region_accept(region, &claims, theirs, 0);
	if (error)
		return error;
	if (claim->bar != theirs->bar || claim->offset != theirs->offset || claim->length != theirs->length)
		return refuse(region, "has %#llx bytes at %#llx of BAR %u, not %#llx at %#llx of BAR %u", theirs->length,
			      theirs->offset, theirs->bar, claim->length, claim->offset, claim->bar);
	return 0;
}

static int region_find_by(const struct nodma_profile *profile, struct nodma_region *region, u64 offered)
{
	const struct nodma_claim *claim;
	struct nodma_claims claims;
	int error, id = 0;

	region->profile = profile;
	if (profile->by_feature && !(offered & BIT_ULL(profile->feature)))
		return -ENODEV;
	if (nodma_claims_read(region->pdev, &claims))
		return refuse(region, "is in a list of capabilities that does not end");
	if (profile->id) {
		id = profile->id(region->pdev, &claims);
		if (id < 0)
			return refuse(region, "is not identified: the common configuration has no aligned dmb_shm_id");
	}
	error = region_find_claim(region, &claims, id, &claim);
	if (error == -ENODEV && profile->by_feature)
		return refuse(region, "with the id %#x is not there", id);
	if (error)
		return error;
	if (profile->needs & ~offered)
		return refuse(region, "lacks features that it needs: %#llx", profile->needs & ~offered);
	if (claim_names_itself(region->pdev, claim))
		return region_accept(region, &claims, claim, id);
	return region_borrow(region, claim);
}

/**
 * nodma_region_find() - find the region that a function offers for its DMA
 * @pdev: the function, enabled
 * @offered: its device's features
 * @region: filled; the caller puts its owner
 *
 * Return: 0, -ENODEV if the function offers none, -EINVAL if what it says is impossible; the log says why.
 */
int nodma_region_find(struct pci_dev *pdev, u64 offered, struct nodma_region *region)
{
	int error = -ENODEV;
	unsigned int i;

	memset(region, 0, sizeof(*region));
	region->pdev = pdev;
	region->owner = pci_dev_get(pdev);
	for (i = 0; i < nodma_profile_count && error == -ENODEV; i++)
		error = region_find_by(&nodma_profiles[i], region, offered);
	if (error)
		pci_dev_put(region->owner);
	return error;
}
