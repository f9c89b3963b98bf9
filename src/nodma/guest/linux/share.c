// SPDX-License-Identifier: GPL-2.0
/*
 * Pools and the functions that use them. A region has one pool; functions join and leave it, and the last one
 * takes it down. While it is there the owner's BAR is claimed and decoded, whether or not the owner has a driver.
 */
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/slab.h>

#include "nodma.h"

#define RESERVE_MIN	8U	/* slots: a ring of 128, and a request of 4 KiB */
#define RESERVE_SHARE	16U	/* of a shared pool, each function has one part of so many: eight functions have half */

static int reserve_kib = -1;
module_param(reserve_kib, int, 0444);
MODULE_PARM_DESC(reserve_kib, "A function's own part of a pool that several share, in KiB (0: none; -1: a sixteenth)");

static LIST_HEAD(pools);
static DEFINE_MUTEX(pools_lock);

#define refuse(pdev, fmt, ...)								\
({											\
	pci_warn(pdev, "nodma: no bouncing: " fmt "\n", ##__VA_ARGS__);			\
	-EINVAL;									\
})

/*
 * An owner that has no driver yet does not answer. Enabling it switches its memory on, and disabling leaves it on. To
 * hold it enabled would not do: where it is reset, its driver starts over only if nobody has it enabled.
 */
static int decode(struct pci_dev *owner)
{
	int error = pci_enable_device_mem(owner);
	u16 command;

	if (error)
		return error;
	pci_read_config_word(owner, PCI_COMMAND, &command);
	pci_disable_device(owner);
	return command & PCI_COMMAND_MEMORY ? 0 : -EIO;
}

/* The BAR must answer, and nobody else may use it. */
static int claim_bar(struct nodma_pool *pool, struct pci_dev *pdev)
{
	const struct nodma_region *region = &pool->region;

	if (decode(region->owner))
		return refuse(pdev, "the memory of %s does not answer", pci_name(region->owner));
	if (region->beside)
		return 0;
	if (pci_request_region(region->owner, region->bar, "nodma"))
		return refuse(pdev, "BAR %d of %s is claimed by something else", region->bar, pci_name(region->owner));
	pool->claimed = true;
	return 0;
}

static void release_bar(struct nodma_pool *pool)
{
	if (pool->claimed)
		pci_release_region(pool->region.owner, pool->region.bar);
}

/*
 * A reset switches the owner's memory off for a while, and whoever else writes rings there loses them without a word:
 * as long as there is somebody else, the owner knows no way to be reset by itself.
 */
static void join(struct nodma_pool *pool, struct pci_dev *pdev)
{
	struct pci_dev *owner = pool->region.owner;

	pool->functions++;
	if (pdev == owner || pool->borrowers++)
		return;
	memcpy(pool->reset_methods, owner->reset_methods, sizeof(pool->reset_methods));
	memset(owner->reset_methods, 0, sizeof(owner->reset_methods));
}

static void leave(struct nodma_pool *pool, struct pci_dev *pdev)
{
	struct pci_dev *owner = pool->region.owner;

	pool->functions--;
	if (pdev != owner && !--pool->borrowers)
		memcpy(owner->reset_methods, pool->reset_methods, sizeof(owner->reset_methods));
}

static struct nodma_pool *make_pool(const struct nodma_region *region)
{
	struct nodma_pool *pool = kzalloc(sizeof(*pool), GFP_KERNEL);
	int error;

	if (!pool)
		return ERR_PTR(-ENOMEM);
	pool->region = *region;
	error = claim_bar(pool, region->pdev);
	if (error)
		goto free;
	error = nodma_pool_init(pool);
	if (error)
		goto release;
	if (!(pci_resource_flags(region->owner, region->bar) & IORESOURCE_PREFETCH))
		pci_warn(region->owner, "nodma: BAR %d is not prefetchable: it may be mapped uncached, and slow\n", region->bar);
	pool->region.pdev = pci_dev_get(region->owner);	/* from here on it is the owner's, whoever came first */
	list_add(&pool->link, &pools);
	return pool;

release:
	release_bar(pool);
free:
	kfree(pool);
	return ERR_PTR(error);
}

static void unmake_pool(struct nodma_pool *pool)
{
	list_del(&pool->link);
	nodma_pool_exit(pool);
	release_bar(pool);
	pci_dev_put(pool->region.owner);
	kfree(pool);
}

/* The pool of a region, made if it is not there. What an owner said to one function it must say to all. */
static struct nodma_pool *find_or_make(const struct nodma_region *region)
{
	struct nodma_pool *pool;

	list_for_each_entry(pool, &pools, link) {
		if (pool->region.owner != region->owner)
			continue;
		if (pool->region.bar == region->bar && pool->region.offset == region->offset &&
		    pool->region.length == region->length && pool->region.shared == region->shared)
			return pool;
		return ERR_PTR(refuse(region->pdev, "the region of %s is not what it was", pci_name(region->owner)));
	}
	return make_pool(region);
}

/* What a function of a shared pool is to have for itself, in slots. A private pool is its function's anyway. */
static unsigned int wanted_reserve(const struct nodma_pool *pool)
{
	if (!pool->region.shared || !reserve_kib)
		return 0;
	if (reserve_kib < 0)
		return max(pool->slots / RESERVE_SHARE, RESERVE_MIN);
	return max_t(unsigned int, ((u64)reserve_kib << 10) >> NODMA_SLOT_SHIFT, 1);
}

/* Reserve what is wanted, or half of that, and so on: what others use already is not taken from them. */
static int reserve(struct nodma_share *share)
{
	unsigned int wanted = wanted_reserve(share->pool), count, first;
	struct nodma_area *own = &share->own;

	for (count = wanted; count; count /= 2)
		if (nodma_pool_set_aside(share->pool, count, &first))
			break;
	if (count < wanted)
		dev_warn(share->dev, "nodma: reserves %lu KiB of the pool instead of %lu: there is no more room\n",
			 count * NODMA_SLOT_SIZE >> 10, wanted * NODMA_SLOT_SIZE >> 10);
	if (!count)
		return 0;
	own->bitmap = kvcalloc(BITS_TO_LONGS(count), sizeof(long), GFP_KERNEL);
	if (!own->bitmap) {
		nodma_pool_put_back(share->pool, first, count);
		return -ENOMEM;
	}
	spin_lock_init(&own->lock);
	own->first = first;
	own->slots = count;
	return 0;
}

/**
 * nodma_pool_get() - find the pool of a function's region
 * @pdev: the function, enabled
 * @offered: its device's features
 *
 * Return: the pool, to be put; -ENODEV if the function has no region, -EINVAL if it cannot be trusted (the log says
 * why), -ENOMEM.
 */
struct nodma_pool *nodma_pool_get(struct pci_dev *pdev, u64 offered)
{
	struct nodma_region region;
	struct nodma_pool *pool;
	int error = nodma_region_find(pdev, offered, &region);

	if (error)
		return ERR_PTR(error);
	mutex_lock(&pools_lock);
	pool = find_or_make(&region);
	if (!IS_ERR(pool))
		join(pool, pdev);
	mutex_unlock(&pools_lock);
	pci_dev_put(region.owner);
	return pool;
}

/* @pdev is the function that the pool was got for. */
void nodma_pool_put(struct nodma_pool *pool, struct pci_dev *pdev)
{
	mutex_lock(&pools_lock);
	leave(pool, pdev);
	if (!pool->functions)
		unmake_pool(pool);
	mutex_unlock(&pools_lock);
}

/**
 * nodma_share_join() - have a function use the pool of its region
 * @share: zeroed
 * @pdev: the function, enabled
 * @offered: its device's features
 *
 * Return: 0, or an error of nodma_pool_get().
 */
int nodma_share_join(struct nodma_share *share, struct pci_dev *pdev, u64 offered)
{
	int error = -ENOMEM;

	share->dev = &pdev->dev;
	share->counters = alloc_percpu(struct nodma_counters);
	if (!share->counters)
		return error;
	share->pool = nodma_pool_get(pdev, offered);
	if (IS_ERR(share->pool)) {
		error = PTR_ERR(share->pool);
		goto free;
	}
	error = reserve(share);
	if (error)
		goto put;
	return 0;

put:
	nodma_pool_put(share->pool, pdev);
free:
	free_percpu(share->counters);
	return error;
}

void nodma_share_leave(struct nodma_share *share)
{
	if (share->own.slots)
		nodma_pool_put_back(share->pool, share->own.first, share->own.slots);
	kvfree(share->own.bitmap);
	free_percpu(share->counters);
	nodma_pool_put(share->pool, to_pci_dev(share->dev));
}

struct nodma_counters nodma_share_count(const struct nodma_share *share)
{
	struct nodma_counters sum = {};
	int cpu;

	for_each_possible_cpu(cpu) {
		const struct nodma_counters *counters = per_cpu_ptr(share->counters, cpu);

		sum.maps += counters->maps;
		sum.unmaps += counters->unmaps;
		sum.to_device += counters->to_device;
		sum.from_device += counters->from_device;
	}
	return sum;
}
