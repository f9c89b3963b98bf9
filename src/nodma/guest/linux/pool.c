// SPDX-License-Identifier: GPL-2.0
/*
 * The pool: slots of 2 KiB in the region, handed out in runs. It is cut into areas, each with a lock of
 * its own, so that queues on different CPUs do not meet.
 *
 * What the device may write is capped at three quarters of an area, lest a network device's receive
 * buffers leave no room to transmit.
 */
#include <linux/bitmap.h>
#include <linux/cpumask.h>
#include <linux/io.h>
#include <linux/log2.h>
#include <linux/mm.h>

#include "nodma.h"

#define AREA_SLOTS_MIN		512U	/* 1 MiB: smaller areas hold too short runs */
#define RING_ALIGN		SZ_4K	/* the alignment of coherent memory */

/* The one place where an address is formed from a slot, and the one where it is taken apart. */
static dma_addr_t slot_address(const struct nodma_pool *pool, unsigned int slot)
{
	return pool->base + ((dma_addr_t)slot << NODMA_SLOT_SHIFT);
}

static bool address_slot(const struct nodma_pool *pool, dma_addr_t address, unsigned int *slot)
{
	dma_addr_t offset = address - pool->base;

	*slot = offset >> NODMA_SLOT_SHIFT;
	return address >= pool->base && offset >> NODMA_SLOT_SHIFT < pool->slots;
}

static void *slot_memory(const struct nodma_pool *pool, unsigned int slot)
{
	return pool->memory + ((size_t)slot << NODMA_SLOT_SHIFT);
}

static unsigned int slots_for(size_t size)
{
	return DIV_ROUND_UP(size, NODMA_SLOT_SIZE);
}

static struct nodma_area *area_of(const struct nodma_pool *pool, unsigned int slot)
{
	return &pool->area[min(slot / pool->area_slots, pool->areas - 1)];
}

/* Take a run of @count free slots of an area, lowest first: few slots stay warm in the caches. */
static bool take_from(struct nodma_area *area, unsigned int count, unsigned int align, bool inbound, unsigned int *slot)
{
	unsigned long at;

	if (area->slots - area->used < count)
		return false;
	if (inbound && area->inbound + count > area->slots - area->slots / 4)
		return false;
	at = bitmap_find_next_zero_area_off(area->bitmap, area->slots, area->hint, count, align - 1, area->first);
	if (at >= area->slots)
		return false;
	bitmap_set(area->bitmap, at, count);
	if (at == area->hint)
		area->hint = at + count;
	area->used += count;
	if (inbound)
		area->inbound += count;
	*slot = area->first + at;
	return true;
}

static void note_peak(struct nodma_pool *pool, long used)
{
	long peak = atomic_long_read(&pool->peak);

	while (used > peak && !atomic_long_try_cmpxchg(&pool->peak, &peak, used))
		;
}

/*
 * Take slots for @size bytes, and write down what they hold and that @copied of it will be copied in: one lock
 * for all of it.
 */
static bool take(struct nodma_pool *pool, void *origin, size_t size, unsigned int align, bool inbound, size_t copied,
		 unsigned int *slot)
{
	unsigned int start = raw_smp_processor_id(), count = slots_for(size), i, n;

	for (n = 0; n < pool->areas; n++) {
		struct nodma_area *area = &pool->area[(start + n) % pool->areas];
		unsigned long flags;
		bool taken;

		spin_lock_irqsave(&area->lock, flags);
		taken = take_from(area, count, align, inbound, slot);
		if (taken) {
			for (i = 0; i < count; i++) {
				size_t offset = (size_t)i << NODMA_SLOT_SHIFT;

				pool->slot[*slot + i] = (struct nodma_slot){
					.origin = origin ? origin + offset : NULL,
					.left = size - offset,
					.first = i == 0,
					.inbound = inbound,
				};
			}
			area->counters.maps += !!origin;
			area->counters.to_device += copied;
		}
		spin_unlock_irqrestore(&area->lock, flags);
		if (taken) {
			note_peak(pool, atomic_long_add_return(count, &pool->used));
			return true;
		}
	}
	atomic_long_inc(&pool->full);
	return false;
}

static void give_back(struct nodma_pool *pool, unsigned int slot, size_t copied)
{
	unsigned int count = slots_for(pool->slot[slot].left), at, i;
	struct nodma_area *area = area_of(pool, slot);
	unsigned long flags;

	spin_lock_irqsave(&area->lock, flags);
	at = slot - area->first;
	bitmap_clear(area->bitmap, at, count);
	area->hint = min(area->hint, at);
	area->used -= count;
	if (pool->slot[slot].inbound)
		area->inbound -= count;
	area->counters.unmaps += !!pool->slot[slot].origin;
	area->counters.from_device += copied;
	for (i = 0; i < count; i++)
		pool->slot[slot + i] = (struct nodma_slot){};
	spin_unlock_irqrestore(&area->lock, flags);
	atomic_long_sub(count, &pool->used);
}

static void copy_in(struct nodma_pool *pool, unsigned int slot, size_t within, size_t size)
{
	memcpy(slot_memory(pool, slot) + within, pool->slot[slot].origin + within, size);
}

static void copy_out(struct nodma_pool *pool, unsigned int slot, size_t within, size_t size)
{
	if (unlikely(READ_ONCE(pool->dead)))
		/* As a bus does that nobody answers on. No status byte of virtio's is ones and means success. */
		memset(pool->slot[slot].origin + within, 0xff, size);
	else
		memcpy(pool->slot[slot].origin + within, slot_memory(pool, slot) + within, size);
}

/**
 * nodma_pool_map() - bounce a buffer
 * @pool: the pool
 * @origin: the buffer
 * @size: bytes
 * @dir: who writes it
 * @attrs: DMA_ATTR_*
 *
 * A buffer that only the device writes is not shown to it: its slots are zeroed. So bytes that the device
 * leaves unwritten come back as zeros.
 *
 * Return: the address for the device, or DMA_MAPPING_ERROR.
 */
dma_addr_t nodma_pool_map(struct nodma_pool *pool, void *origin, size_t size, enum dma_data_direction dir,
			  unsigned long attrs)
{
	bool copied = dir != DMA_FROM_DEVICE && !(attrs & DMA_ATTR_SKIP_CPU_SYNC);
	unsigned int slot;

	if (!size || size > nodma_pool_max_mapping(pool)) {
		atomic_long_inc(&pool->refused);
		dev_dbg(pool->dev, "nodma: refused to map %zu bytes, at most %zu\n", size, nodma_pool_max_mapping(pool));
		return DMA_MAPPING_ERROR;
	}
	if (!take(pool, origin, size, 1, dir != DMA_TO_DEVICE, copied ? size : 0, &slot)) {
		dev_dbg(pool->dev, "nodma: no room to map %zu bytes\n", size);
		return DMA_MAPPING_ERROR;
	}
	if (dir == DMA_FROM_DEVICE)
		memset(slot_memory(pool, slot), 0, size);
	else if (copied)
		copy_in(pool, slot, 0, size);
	return slot_address(pool, slot);
}

void nodma_pool_unmap(struct nodma_pool *pool, dma_addr_t address, size_t size, enum dma_data_direction dir,
		      unsigned long attrs)
{
	bool copied = dir != DMA_TO_DEVICE && !(attrs & DMA_ATTR_SKIP_CPU_SYNC);
	unsigned int slot;

	if (WARN_ONCE(!address_slot(pool, address, &slot) || !pool->slot[slot].first || !pool->slot[slot].origin,
		      "nodma: %pad was never mapped\n", &address))
		return;
	size = min_t(size_t, size, pool->slot[slot].left);
	if (copied)
		copy_out(pool, slot, 0, size);
	give_back(pool, slot, copied ? size : 0);
}

/* Bring a part of a mapping up to date, towards the device or from it. */
void nodma_pool_sync(struct nodma_pool *pool, dma_addr_t address, size_t size, bool to_device)
{
	size_t within = (address - pool->base) & (NODMA_SLOT_SIZE - 1);
	struct nodma_area *area;
	unsigned long flags;
	unsigned int slot;

	if (WARN_ONCE(!address_slot(pool, address, &slot) || !pool->slot[slot].origin ||
			      within + size > pool->slot[slot].left,
		      "nodma: %pad, %zu bytes, are not mapped\n", &address, size))
		return;
	area = area_of(pool, slot);
	spin_lock_irqsave(&area->lock, flags);
	if (to_device)
		area->counters.to_device += size;
	else
		area->counters.from_device += size;
	spin_unlock_irqrestore(&area->lock, flags);
	if (to_device)
		copy_in(pool, slot, within, size);
	else
		copy_out(pool, slot, within, size);
}

/**
 * nodma_pool_alloc() - take memory that driver and device share, as rings are
 * @pool: the pool
 * @size: bytes
 * @address: set to the address for the device
 *
 * Return: the memory, zeroed and on a page, or NULL.
 */
void *nodma_pool_alloc(struct nodma_pool *pool, size_t size, dma_addr_t *address)
{
	unsigned int slot;

	size = PAGE_ALIGN(size);
	if (!size || slots_for(size) > pool->area_slots ||
	    !take(pool, NULL, size, RING_ALIGN / NODMA_SLOT_SIZE, false, 0, &slot))
		return NULL;
	*address = slot_address(pool, slot);
	return memset(slot_memory(pool, slot), 0, size);
}

void nodma_pool_free(struct nodma_pool *pool, dma_addr_t address, size_t size)
{
	unsigned int slot;

	if (WARN_ONCE(!address_slot(pool, address, &slot) || !pool->slot[slot].first ||
			      pool->slot[slot].left != PAGE_ALIGN(size),
		      "nodma: %pad was never allocated\n", &address))
		return;
	give_back(pool, slot, 0);
}

/*
 * A quarter of an area: a request whose mapping is refused is tried again by the block layer, for ever, so
 * what is allowed must find room once others are done.
 */
size_t nodma_pool_max_mapping(const struct nodma_pool *pool)
{
	return (size_t)(pool->area_slots / 4) << NODMA_SLOT_SHIFT;
}

struct nodma_counters nodma_pool_count(const struct nodma_pool *pool)
{
	struct nodma_counters sum = {};
	unsigned int i;

	for (i = 0; i < pool->areas; i++) {
		struct nodma_area *area = &pool->area[i];
		unsigned long flags;

		spin_lock_irqsave(&area->lock, flags);
		sum.maps += area->counters.maps;
		sum.unmaps += area->counters.unmaps;
		sum.to_device += area->counters.to_device;
		sum.from_device += area->counters.from_device;
		spin_unlock_irqrestore(&area->lock, flags);
	}
	return sum;
}

/**
 * nodma_pool_init() - make a pool of a region
 * @pool: zeroed
 * @pdev: the function that owns the region's BAR
 * @region: checked
 *
 * Mapped write-back: in a virtual machine the BAR is ordinary memory. Never write-combining, which
 * would need stronger barriers than virtio's.
 *
 * Return: 0 or -ENOMEM.
 */
int nodma_pool_init(struct nodma_pool *pool, struct pci_dev *pdev, const struct nodma_region *region)
{
	unsigned int i, words;

	pool->dev = &pdev->dev;
	pool->slots = region->length >> NODMA_SLOT_SHIFT;
	pool->areas = clamp_t(unsigned int, pool->slots / AREA_SLOTS_MIN, 1, roundup_pow_of_two(num_possible_cpus()));
	pool->area_slots = round_down(pool->slots / pool->areas, RING_ALIGN / NODMA_SLOT_SIZE);
	pool->base = pci_bus_address(pdev, region->bar) + region->offset;
	pool->memory = memremap(pci_resource_start(pdev, region->bar) + region->offset, region->length, MEMREMAP_WB);
	pool->slot = kvcalloc(pool->slots, sizeof(*pool->slot), GFP_KERNEL);
	pool->area = kcalloc(pool->areas, sizeof(*pool->area), GFP_KERNEL);
	words = BITS_TO_LONGS(pool->slots - (pool->areas - 1) * pool->area_slots);	/* the last area's */
	pool->bitmaps = kvcalloc(array_size(words, pool->areas), sizeof(long), GFP_KERNEL);
	if (!pool->memory || !pool->slot || !pool->area || !pool->bitmaps) {
		nodma_pool_exit(pool);
		return -ENOMEM;
	}
	for (i = 0; i < pool->areas; i++) {
		struct nodma_area *area = &pool->area[i];

		spin_lock_init(&area->lock);
		area->first = i * pool->area_slots;
		area->slots = i == pool->areas - 1 ? pool->slots - area->first : pool->area_slots;
		area->bitmap = pool->bitmaps + i * words;
	}
	return 0;
}

void nodma_pool_exit(struct nodma_pool *pool)
{
	if (pool->memory)
		memunmap(pool->memory);
	kvfree(pool->bitmaps);
	kfree(pool->area);
	kvfree(pool->slot);
	memset(pool, 0, sizeof(*pool));
}
