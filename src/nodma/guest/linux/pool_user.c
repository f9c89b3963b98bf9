// SPDX-License-Identifier: GPL-2.0
/*
 * Pools and the functions that use them. A region has one pool; functions join and leave it, and the last one
 * takes it down. While it is there the owner's BAR is claimed and decoded, whether or not the owner has a driver.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/slab.h>

#include "nodma.h"

#define RESERVE_MIN	8U	/* slots: a ring of 128, and a request of 4 KiB */
#define RESERVE_SHARE	16U	/* of a shared pool, each function has one part of so many: eight functions have half */
#define TABLE_SHARE	64U	/* the table of a pool's slots takes at most one part of so many of this machine's memory */

static int reserve_kib = -1;
module_param(reserve_kib, int, 0444);
MODULE_PARM_DESC(reserve_kib, "A function's own part of a pool that several share, in KiB (0: none; -1: a sixteenth)");

static unsigned int max_mib = NODMA_POOL_MAX_MIB;
module_param(max_mib, uint, 0444);
MODULE_PARM_DESC(max_mib, "The most of a device's region that is used, in MiB (at most 4096)");

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
static int pool_decode(struct pci_dev *owner)
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
static int pool_claim_bar(struct nodma_pool *pool, struct pci_dev *pdev)
{
	const struct nodma_region *region = &pool->region;
	int error;

	if (pool_decode(region->owner))
		return refuse(pdev, "the memory of %s does not answer", pci_name(region->owner));
	if (region->beside)
		return 0;
	error = pci_request_region(region->owner, region->bar, "nodma");
	if (error == -EBUSY)
		return refuse(pdev, "BAR %d of %s is in use by something else; /proc/iomem says by what", region->bar,
			      pci_name(region->owner));
	if (error)
		return refuse(pdev, "BAR %d of %s cannot be claimed: error %d", region->bar, pci_name(region->owner), error);
	pool->claimed = true;
	return 0;
}

static void pool_release_bar(struct nodma_pool *pool)
{
	if (pool->claimed)
		pci_release_region(pool->region.owner, pool->region.bar);
}

/*
 * A reset switches the owner's memory off for a while, and whoever else writes rings there loses them without a word:
 * as long as there is somebody else, the owner knows no way to be reset by itself.
 */
static void pool_join(struct nodma_pool *pool, struct pci_dev *pdev)
{
	struct pci_dev *owner = pool->region.owner;

	pool->functions++;
	if (pdev == owner || pool->borrowers++)
		return;
	memcpy(pool->reset_methods, owner->reset_methods, sizeof(pool->reset_methods));
	memset(owner->reset_methods, 0, sizeof(owner->reset_methods));
}

static void pool_leave(struct nodma_pool *pool, struct pci_dev *pdev)
{
	struct pci_dev *owner = pool->region.owner;

	pool->functions--;
	if (pdev != owner && !--pool->borrowers)
		memcpy(owner->reset_methods, pool->reset_methods, sizeof(owner->reset_methods));
}

/*
 * How much of a region is used. The device says how large it is, and its slots take memory of this machine: what is over
 * stays unused.
 */
static u64 pool_usable(const struct nodma_region *region)
{
	u64 limit = (u64)clamp(max_mib, 1U, NODMA_POOL_MAX_MIB) << 20;
	u64 table = ((u64)totalram_pages() << PAGE_SHIFT) / TABLE_SHARE;

	limit = min(limit, round_down(table / sizeof(struct nodma_slot) * NODMA_SLOT_SIZE, SZ_1M));
	limit = max_t(u64, limit, SZ_1M);
	if (region->length <= limit)
		return region->length;
	pci_warn(region->owner, "nodma: uses %llu MiB of its region of %llu: at most max_mib, and one %uth of memory for the table\n",
		 limit >> 20, region->length >> 20, TABLE_SHARE);
	return limit;
}

static struct nodma_pool *pool_make(const struct nodma_region *region)
{
	struct nodma_pool *pool = kzalloc(sizeof(*pool), GFP_KERNEL);
	int error;

	if (!pool)
		return ERR_PTR(-ENOMEM);
	pool->region = *region;
	pool->size = pool_usable(region);
	__set_bit(0, pool->ids);	/* nobody's */
	error = pool_claim_bar(pool, region->pdev);
	if (error)
		goto free;
	error = nodma_pool_init(pool);
	if (error == -ENOMEM)
		pci_warn(region->pdev, "nodma: no bouncing: no memory for a pool of %llu KiB\n", pool->size >> 10);
	if (error)
		goto release;
	if (!(pci_resource_flags(region->owner, region->bar) & IORESOURCE_PREFETCH))
		pci_warn(region->owner, "nodma: BAR %d is not prefetchable: it may be slow\n", region->bar);
	pool->region.pdev = pci_dev_get(region->owner);	/* from here on it is the owner's, whoever came first */
	list_add(&pool->link, &pools);
	return pool;

release:
	pool_release_bar(pool);
free:
	kfree(pool);
	return ERR_PTR(error);
}

static void pool_unmake(struct nodma_pool *pool)
{
	list_del(&pool->link);
	nodma_pool_exit(pool);
	pool_release_bar(pool);
	pci_dev_put(pool->region.owner);
	kfree(pool);
}

/* The pool of a region, made if it is not there. What an owner said to one function it must say to all. */
static struct nodma_pool *pool_find_or_make(const struct nodma_region *region)
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
	return pool_make(region);
}

/* What a function of a shared pool is to have for itself, in slots. A private pool is its function's anyway. */
static unsigned int pool_wanted_reserve(const struct nodma_pool *pool)
{
	if (!pool->region.shared || !reserve_kib)
		return 0;
	if (reserve_kib < 0)
		return max(pool->slots / RESERVE_SHARE, RESERVE_MIN);
	return max_t(unsigned int, ((u64)reserve_kib << 10) >> NODMA_SLOT_SHIFT, 1);
}

/* Reserve what is wanted, or half of that, and so on: what others use already is not taken from them. */
static int pool_user_reserve(struct nodma_pool_user *user)
{
	unsigned int wanted = pool_wanted_reserve(user->pool), count, first;
	struct nodma_area *own = &user->own;

	for (count = wanted; count; count /= 2)
		if (nodma_pool_set_aside(user->pool, count, &first))
			break;
	if (count < wanted)
		dev_warn(user->dev, "nodma: reserves %lu KiB of the pool instead of %lu: there is no more room\n",
			 count * NODMA_SLOT_SIZE >> 10, wanted * NODMA_SLOT_SIZE >> 10);
	if (!count)
		return 0;
	own->bitmap = kvcalloc(BITS_TO_LONGS(count), sizeof(long), GFP_KERNEL);
	if (!own->bitmap) {
		nodma_pool_put_back(user->pool, first, count);
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
 * Return: the pool, to be put; -ENODEV if the function has no region, -EINVAL if it cannot be trusted, -EPERM if it cannot
 * be mapped so that the device can read it (the log says why), -ENOMEM.
 */
struct nodma_pool *nodma_pool_get(struct pci_dev *pdev, u64 offered)
{
	struct nodma_region region;
	struct nodma_pool *pool;
	int error = nodma_region_find(pdev, offered, &region);

	if (error)
		return ERR_PTR(error);
	mutex_lock(&pools_lock);
	pool = pool_find_or_make(&region);
	if (!IS_ERR(pool))
		pool_join(pool, pdev);
	mutex_unlock(&pools_lock);
	pci_dev_put(region.owner);
	return pool;
}

/* @pdev is the function that the pool was got for. */
void nodma_pool_put(struct nodma_pool *pool, struct pci_dev *pdev)
{
	mutex_lock(&pools_lock);
	pool_leave(pool, pdev);
	if (!pool->functions)
		pool_unmake(pool);
	mutex_unlock(&pools_lock);
}

/* The number that a function's slots carry. */
static int pool_user_number(struct nodma_pool_user *user)
{
	struct nodma_pool *pool = user->pool;
	unsigned long id;

	mutex_lock(&pools_lock);
	id = find_first_zero_bit(pool->ids, NODMA_USERS_MAX);
	if (id < NODMA_USERS_MAX)
		__set_bit(id, pool->ids);
	mutex_unlock(&pools_lock);
	if (id == NODMA_USERS_MAX)
		return -ENOSPC;
	user->id = id;
	return 0;
}

static void pool_user_unnumber(struct nodma_pool_user *user)
{
	mutex_lock(&pools_lock);
	__clear_bit(user->id, user->pool->ids);
	mutex_unlock(&pools_lock);
}

/**
 * nodma_pool_user_join() - have a function use the pool of its region
 * @user: zeroed
 * @pdev: the function, enabled
 * @offered: its device's features
 *
 * Return: 0, or an error of nodma_pool_get().
 */
int nodma_pool_user_join(struct nodma_pool_user *user, struct pci_dev *pdev, u64 offered)
{
	int error = -ENOMEM;

	user->dev = &pdev->dev;
	user->counters = alloc_percpu(struct nodma_counters);
	if (!user->counters)
		return error;
	user->pool = nodma_pool_get(pdev, offered);
	if (IS_ERR(user->pool)) {
		error = PTR_ERR(user->pool);
		goto free;
	}
	error = pool_user_number(user);
	if (error)
		goto put;
	error = pool_user_reserve(user);
	if (error)
		goto unnumber;
	return 0;

unnumber:
	pool_user_unnumber(user);
put:
	nodma_pool_put(user->pool, pdev);
free:
	free_percpu(user->counters);
	return error;
}

void nodma_pool_user_leave(struct nodma_pool_user *user)
{
	unsigned int left = nodma_pool_sweep(user);

	/* Somebody still has memory of this pool's, or of this function's in it: those slots, and its number, are lost. */
	if (left)
		dev_warn(user->dev, "nodma: %u slots were never given back\n", left);
	else
		pool_user_unnumber(user);
	if (user->own.slots)
		nodma_pool_put_back(user->pool, user->own.first, user->own.slots);
	kvfree(user->own.bitmap);
	free_percpu(user->counters);
	nodma_pool_put(user->pool, to_pci_dev(user->dev));
}

struct nodma_counters nodma_pool_user_count(const struct nodma_pool_user *user)
{
	struct nodma_counters sum = {};
	int cpu;

	for_each_possible_cpu(cpu) {
		const struct nodma_counters *counters = per_cpu_ptr(user->counters, cpu);

		sum.maps += counters->maps;
		sum.unmaps += counters->unmaps;
		sum.to_device += counters->to_device;
		sum.from_device += counters->from_device;
	}
	return sum;
}
