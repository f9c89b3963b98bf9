// SPDX-License-Identifier: GPL-2.0
/*
 * The region's mapping. Write-back is asked for: in a virtual machine the BAR is ordinary memory. Never
 * write-combining, which would need stronger barriers than virtio's. What the mapping becomes, the kernel decides.
 *
 * In a confidential guest the mapping must be one that the host can read. MEMREMAP_DEC asks for that; before Linux 6.15
 * memremap() did so anyway, and on arm64 the kernel asks its Realm Management Monitor of the addresses, whatever is said.
 */
#include <linux/cc_platform.h>
#include <linux/io.h>

#ifdef CONFIG_X86
#include <asm/coco.h>
#include <asm/pgtable.h>
#endif

#include "nodma.h"

#ifdef CONFIG_X86
/* By the bits PAT, PCD, PWT of a page table entry, as Linux sets up the page attribute table. */
static const char *const memory_types[] = {
	"write-back", "write-combining", "uncached-minus", "uncached",
	"write-back", "write-protected", "uncached-minus", "write-through",
};

static int memory_look(void *memory, const char **type)
{
	unsigned int level;
	pte_t *entry = lookup_address((unsigned long)memory, &level);
	u64 value, pat;

	*type = "in a way that cannot be told";
	if (!entry)
		return 0;
	value = pte_val(*entry);
	pat = level == PG_LEVEL_4K ? _PAGE_PAT : _PAGE_PAT_LARGE;
	*type = memory_types[(value & pat ? 4 : 0) + (value & _PAGE_PCD ? 2 : 0) + (value & _PAGE_PWT ? 1 : 0)];
	return cc_platform_has(CC_ATTR_MEM_ENCRYPT) && cc_mkdec(value) != value ? -EPERM : 0;
}
#else
static int memory_look(void *memory, const char **type)
{
	*type = "as normal memory";
	return 0;
}
#endif

/**
 * nodma_memory_map() - map a region
 * @dev: whose it is, for the log
 * @start: its physical address
 * @size: bytes
 * @type: set to what the mapping became, in words
 *
 * Return: the memory; -ENOMEM; -EPERM if this guest's kernel would encrypt it.
 */
void *nodma_memory_map(struct device *dev, phys_addr_t start, size_t size, const char **type)
{
	void *memory = memremap(start, size, MEMREMAP_WB | MEMREMAP_DEC);
	int error;

	if (!memory)
		return ERR_PTR(-ENOMEM);
	error = memory_look(memory, type);
	if (error) {
		dev_err(dev, "nodma: no bouncing: this kernel maps the region encrypted, and the device could not read it\n");
		memunmap(memory);
		return ERR_PTR(error);
	}
	return memory;
}

void nodma_memory_unmap(void *memory)
{
	memunmap(memory);
}
