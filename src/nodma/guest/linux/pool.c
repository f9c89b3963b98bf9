// SPDX-License-Identifier: GPL-2.0
/*
 * The pool: slots of 2 KiB in the region, handed out in runs. It is cut into areas, each with a lock of
 * its own, so that queues on different CPUs do not meet. A reservation is an area as well, with one function
 * to use it: so it keeps its promise also to a request of many slots, which slots counted here and there could not.
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

static struct nodma_area *area_of(struct nodma_share *share, unsigned int slot)
{
	struct nodma_pool *pool = share->pool;

	if (slot - share->own.first < share->own.slots)
		return &share->own;
	return &pool->area[min(slot / pool->area_slots, pool->areas - 1)];
}

static void mark(struct nodma_area *area, unsigned int at, unsigned int count)
{
	bitmap_set(area->bitmap, at, count);
	if (at == area->hint)
		area->hint = at + count;
	area->used += count;
}

static void unmark(struct nodma_area *area, unsigned int at, unsigned int count)
{
	bitmap_clear(area->bitmap, at, count);
	area->hint = min(area->hint, at);
	area->used -= count;
}

/* Take a run of @count free slots of an area, lowest first: few slots stay warm in the caches. */
static bool take_from(struct nodma_area *area, unsigned int count, unsigned int align, bool inbound, unsigned int *slot)
{
	unsigned int room = area->slots - area->aside;
	unsigned long at;

	if (area->slots - area->used < count)
		return false;
	if (inbound && area->inbound + count > room - room / 4)
		return false;
	at = bitmap_find_next_zero_area_off(area->bitmap, area->slots, area->hint, count, align - 1, area->first);
	if (at >= area->slots)
		return false;
	mark(area, at, count);
	if (inbound)
		area->inbound += count;
	*slot = area->first + at;
	return true;
}

static bool take_locked(struct nodma_area *area, unsigned int count, unsigned int align, bool inbound,
			unsigned int *slot)
{
	unsigned long flags;
	bool taken;

	spin_lock_irqsave(&area->lock, flags);
	taken = take_from(area, count, align, inbound, slot);
	spin_unlock_irqrestore(&area->lock, flags);
	return taken;
}

/* A function takes from its reservation first, and then from what belongs to nobody. */
static bool take_any(struct nodma_share *share, unsigned int count, unsigned int align, bool inbound,
		     unsigned int *slot)
{
	unsigned int start = raw_smp_processor_id(), n;
	struct nodma_pool *pool = share->pool;

	if (share->own.slots && take_locked(&share->own, count, align, inbound, slot))
		return true;
	for (n = 0; n < pool->areas; n++)
		if (take_locked(&pool->area[(start + n) % pool->areas], count, align, inbound, slot))
			return true;
	return false;
}

static void note_taken(struct nodma_usage *usage, unsigned int count)
{
	long used = atomic_long_add_return(count, &usage->used);
	long peak = atomic_long_read(&usage->peak);

	while (used > peak && !atomic_long_try_cmpxchg(&usage->peak, &peak, used))
		;
}

/* Take slots for @size bytes, and write down what they hold. */
static bool take(struct nodma_share *share, void *origin, size_t size, unsigned int align, bool inbound,
		 unsigned int *slot)
{
	struct nodma_pool *pool = share->pool;
	unsigned int count = slots_for(size), i;

	if (!take_any(share, count, align, inbound, slot)) {
		atomic_long_inc(&share->full);
		return false;
	}
	for (i = 0; i < count; i++) {
		size_t offset = (size_t)i << NODMA_SLOT_SHIFT;

		pool->slot[*slot + i] = (struct nodma_slot){
			.origin = origin ? origin + offset : NULL,
			.left = size - offset,
			.first = i == 0,
			.inbound = inbound,
		};
	}
	note_taken(&share->usage, count);
	if (pool->region.shared)
		note_taken(&pool->usage, count);
	return true;
}

static void give_back(struct nodma_share *share, unsigned int slot)
{
	struct nodma_area *area = area_of(share, slot);
	struct nodma_pool *pool = share->pool;
	unsigned int count = slots_for(pool->slot[slot].left);
	bool inbound = pool->slot[slot].inbound;
	unsigned long flags;

	memset(&pool->slot[slot], 0, count * sizeof(pool->slot[slot]));
	spin_lock_irqsave(&area->lock, flags);
	unmark(area, slot - area->first, count);
	if (inbound)
		area->inbound -= count;
	spin_unlock_irqrestore(&area->lock, flags);
	atomic_long_sub(count, &share->usage.used);
	if (pool->region.shared)
		atomic_long_sub(count, &pool->usage.used);
}

/*
 * Copy, and zero, by words. The string instructions that memcpy() and memset() are on x86 go byte by byte where the
 * processor is emulated, and cost such a guest a quarter of its requests; elsewhere both wait for the memory.
 */
#define WORDS		4
#define STRIDE		(WORDS * sizeof(u64))

static void copy(void *to, const void *from, size_t size)
{
	u64 words[WORDS];
	size_t at;

	for (at = 0; at + STRIDE <= size; at += STRIDE) {
		__builtin_memcpy(words, from + at, STRIDE);
		__builtin_memcpy(to + at, words, STRIDE);
		barrier();	/* else the compiler makes a memcpy() of it all */
	}
	memcpy(to + at, from + at, size - at);
}

static void zero(void *to, size_t size)
{
	static const u64 zeros[WORDS];
	size_t at;

	for (at = 0; at + STRIDE <= size; at += STRIDE) {
		__builtin_memcpy(to + at, zeros, STRIDE);
		barrier();
	}
	memset(to + at, 0, size - at);
}

static void copy_in(struct nodma_share *share, unsigned int slot, size_t within, size_t size)
{
	struct nodma_pool *pool = share->pool;

	copy(slot_memory(pool, slot) + within, pool->slot[slot].origin + within, size);
	this_cpu_add(share->counters->to_device, size);
}

static void copy_out(struct nodma_share *share, unsigned int slot, size_t within, size_t size)
{
	struct nodma_pool *pool = share->pool;

	if (unlikely(READ_ONCE(share->dead)))
		/* As a bus does that nobody answers on. No status byte of virtio's is ones and means success. */
		memset(pool->slot[slot].origin + within, 0xff, size);
	else
		copy(pool->slot[slot].origin + within, slot_memory(pool, slot) + within, size);
	this_cpu_add(share->counters->from_device, size);
}

/**
 * nodma_pool_map() - bounce a buffer
 * @share: what the function has of its pool
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
dma_addr_t nodma_pool_map(struct nodma_share *share, void *origin, size_t size, enum dma_data_direction dir,
			  unsigned long attrs)
{
	struct nodma_pool *pool = share->pool;
	unsigned int slot;

	if (!size || size > nodma_pool_max_mapping(pool)) {
		atomic_long_inc(&share->refused);
		dev_dbg(share->dev, "nodma: refused to map %zu bytes, at most %zu\n", size, nodma_pool_max_mapping(pool));
		return DMA_MAPPING_ERROR;
	}
	if (!take(share, origin, size, 1, dir != DMA_TO_DEVICE, &slot)) {
		dev_dbg(share->dev, "nodma: no room to map %zu bytes\n", size);
		return DMA_MAPPING_ERROR;
	}
	this_cpu_inc(share->counters->maps);
	if (dir == DMA_FROM_DEVICE)
		zero(slot_memory(pool, slot), size);
	else if (!(attrs & DMA_ATTR_SKIP_CPU_SYNC))
		copy_in(share, slot, 0, size);
	return slot_address(pool, slot);
}

void nodma_pool_unmap(struct nodma_share *share, dma_addr_t address, size_t size, enum dma_data_direction dir,
		      unsigned long attrs)
{
	struct nodma_pool *pool = share->pool;
	unsigned int slot;

	if (WARN_ONCE(!address_slot(pool, address, &slot) || !pool->slot[slot].first || !pool->slot[slot].origin,
		      "nodma: %pad was never mapped\n", &address))
		return;
	if (dir != DMA_TO_DEVICE && !(attrs & DMA_ATTR_SKIP_CPU_SYNC))
		copy_out(share, slot, 0, min_t(size_t, size, pool->slot[slot].left));
	give_back(share, slot);
	this_cpu_inc(share->counters->unmaps);
}

/* Bring a part of a mapping up to date, towards the device or from it. */
void nodma_pool_sync(struct nodma_share *share, dma_addr_t address, size_t size, bool to_device)
{
	struct nodma_pool *pool = share->pool;
	size_t within = (address - pool->base) & (NODMA_SLOT_SIZE - 1);
	unsigned int slot;

	if (WARN_ONCE(!address_slot(pool, address, &slot) || !pool->slot[slot].origin ||
			      within + size > pool->slot[slot].left,
		      "nodma: %pad, %zu bytes, are not mapped\n", &address, size))
		return;
	if (to_device)
		copy_in(share, slot, within, size);
	else
		copy_out(share, slot, within, size);
}

/**
 * nodma_pool_alloc() - take memory that driver and device share, as rings are
 * @share: what the function has of its pool
 * @size: bytes
 * @address: set to the address for the device
 *
 * Return: the memory, zeroed and on a page, or NULL.
 */
void *nodma_pool_alloc(struct nodma_share *share, size_t size, dma_addr_t *address)
{
	struct nodma_pool *pool = share->pool;
	unsigned int slot;

	size = PAGE_ALIGN(size);
	if (!size || slots_for(size) > pool->area_slots || !take(share, NULL, size, NODMA_RING_SLOTS, false, &slot))
		return NULL;
	*address = slot_address(pool, slot);
	return memset(slot_memory(pool, slot), 0, size);
}

void nodma_pool_free(struct nodma_share *share, dma_addr_t address, size_t size)
{
	struct nodma_pool *pool = share->pool;
	unsigned int slot;

	if (WARN_ONCE(!address_slot(pool, address, &slot) || !pool->slot[slot].first ||
			      pool->slot[slot].left != PAGE_ALIGN(size),
		      "nodma: %pad was never allocated\n", &address))
		return;
	give_back(share, slot);
}

/*
 * A quarter of an area: a request whose mapping is refused is tried again by the block layer, for ever, so
 * what is allowed must find room once others are done.
 */
size_t nodma_pool_max_mapping(const struct nodma_pool *pool)
{
	return (size_t)(pool->area_slots / 4) << NODMA_SLOT_SHIFT;
}

/**
 * nodma_pool_set_aside() - take a run of slots out of the pool, for a reservation
 * @pool: the pool
 * @count: slots
 * @slot: set to the first
 *
 * Only the first halves of areas are taken from, so that the longest mapping finds room in the others.
 *
 * Return: whether there was one.
 */
bool nodma_pool_set_aside(struct nodma_pool *pool, unsigned int count, unsigned int *slot)
{
	unsigned int n;

	for (n = 0; n < pool->areas; n++) {
		struct nodma_area *area = &pool->area[(pool->functions + n) % pool->areas];
		unsigned long at, flags;
		bool found;

		spin_lock_irqsave(&area->lock, flags);
		at = bitmap_find_next_zero_area_off(area->bitmap, area->slots / 2, 0, count, NODMA_RING_SLOTS - 1,
						    area->first);
		found = at + count <= area->slots / 2;
		if (found) {
			mark(area, at, count);
			area->aside += count;
		}
		spin_unlock_irqrestore(&area->lock, flags);
		*slot = area->first + at;
		if (found)
			return true;
	}
	return false;
}

void nodma_pool_put_back(struct nodma_pool *pool, unsigned int slot, unsigned int count)
{
	struct nodma_area *area = &pool->area[min(slot / pool->area_slots, pool->areas - 1)];
	unsigned long flags;

	spin_lock_irqsave(&area->lock, flags);
	unmark(area, slot - area->first, count);
	area->aside -= count;
	spin_unlock_irqrestore(&area->lock, flags);
}

/**
 * nodma_pool_init() - make a pool of a region
 * @pool: zeroed but for its region, which is checked
 *
 * Mapped write-back: in a virtual machine the BAR is ordinary memory. Never write-combining, which
 * would need stronger barriers than virtio's.
 *
 * Return: 0 or -ENOMEM.
 */
int nodma_pool_init(struct nodma_pool *pool)
{
	const struct nodma_region *region = &pool->region;
	unsigned int i, words;

	pool->slots = region->length >> NODMA_SLOT_SHIFT;
	pool->areas = clamp_t(unsigned int, pool->slots / AREA_SLOTS_MIN, 1, roundup_pow_of_two(num_possible_cpus()));
	pool->area_slots = round_down(pool->slots / pool->areas, NODMA_RING_SLOTS);
	pool->base = region->profile->base(region);
	pool->memory = memremap(pci_resource_start(region->owner, region->bar) + region->offset, region->length,
				MEMREMAP_WB);
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
	mark(&pool->area[0], 0, region->profile->unused);
	pool->area[0].aside = region->profile->unused;
	return 0;
}

void nodma_pool_exit(struct nodma_pool *pool)
{
	if (pool->memory)
		memunmap(pool->memory);
	kvfree(pool->bitmaps);
	kfree(pool->area);
	kvfree(pool->slot);
}
