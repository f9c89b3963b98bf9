// SPDX-License-Identifier: GPL-2.0
/*
 * The pool: slots of 2 KiB in the region, handed out in runs. It is cut into areas, each with a lock of
 * its own, so that queues on different CPUs do not meet. A reservation is an area as well, with one function
 * to use it: so it keeps its promise also to a request of many slots, which slots counted here and there could not.
 *
 * What the device may write is capped at three quarters of an area, so that a network device's receive
 * buffers leave room to transmit.
 */
#include <linux/bitfield.h>
#include <linux/bitmap.h>
#include <linux/cpumask.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/sched.h>

#include "nodma.h"

#define AREA_SLOTS_MIN		512U	/* 1 MiB: smaller areas hold too short runs */

/* A slot's state. That of a mapping's first slot changes by cmpxchg() only: who changes it has the mapping's end. */
#define STATE_USER		GENMASK(7, 0)
#define STATE_DIRECTION		GENMASK(9, 8)	/* enum dma_data_direction */
#define STATE_FIRST		BIT(10)		/* this slot begins its mapping */
#define STATE_RING		BIT(11)		/* coherent memory, which is not copied */
#define STATE_ABANDONED		BIT(12)		/* its device was given up: what it bounced is no longer ours to touch */

/* The one place where an address is formed from a slot, and the one where it is taken apart. */
static dma_addr_t pool_slot_address(const struct nodma_pool *pool, unsigned int slot)
{
	return pool->base + ((dma_addr_t)slot << NODMA_SLOT_SHIFT);
}

static bool pool_address_slot(const struct nodma_pool *pool, dma_addr_t address, unsigned int *slot)
{
	dma_addr_t offset = address - pool->base;

	*slot = offset >> NODMA_SLOT_SHIFT;
	return address >= pool->base && offset >> NODMA_SLOT_SHIFT < pool->slots;
}

static void *pool_slot_memory(const struct nodma_pool *pool, unsigned int slot)
{
	return pool->memory + ((size_t)slot << NODMA_SLOT_SHIFT);
}

static unsigned int pool_slots_for(size_t size)
{
	return DIV_ROUND_UP(size, NODMA_SLOT_SIZE);
}

static struct nodma_area *pool_area_of(struct nodma_pool_user *user, unsigned int slot)
{
	struct nodma_pool *pool = user->pool;

	if (slot - user->own.first < user->own.slots)
		return &user->own;
	return &pool->area[min(slot / pool->area_slots, pool->areas - 1)];
}

static void pool_mark(struct nodma_area *area, unsigned int at, unsigned int count)
{
	bitmap_set(area->bitmap, at, count);
	if (at == area->hint)
		area->hint = at + count;
	area->used += count;
}

static void pool_unmark(struct nodma_area *area, unsigned int at, unsigned int count)
{
	bitmap_clear(area->bitmap, at, count);
	area->hint = min(area->hint, at);
	area->used -= count;
}

/* Take a run of @count free slots of an area, lowest first: few slots stay warm in the caches. */
static bool pool_take_from(struct nodma_area *area, unsigned int count, unsigned int align, bool inbound, unsigned int *slot)
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
	pool_mark(area, at, count);
	if (inbound)
		area->inbound += count;
	*slot = area->first + at;
	return true;
}

static bool pool_take_locked(struct nodma_area *area, unsigned int count, unsigned int align, bool inbound,
			unsigned int *slot)
{
	unsigned long flags;
	bool taken;

	spin_lock_irqsave(&area->lock, flags);
	taken = pool_take_from(area, count, align, inbound, slot);
	spin_unlock_irqrestore(&area->lock, flags);
	return taken;
}

/* A function takes from its reservation first, and then from what belongs to nobody. */
static bool pool_take_any(struct nodma_pool_user *user, unsigned int count, unsigned int align, bool inbound,
		     unsigned int *slot)
{
	unsigned int start = raw_smp_processor_id(), n;
	struct nodma_pool *pool = user->pool;

	if (user->own.slots && pool_take_locked(&user->own, count, align, inbound, slot))
		return true;
	for (n = 0; n < pool->areas; n++)
		if (pool_take_locked(&pool->area[(start + n) % pool->areas], count, align, inbound, slot))
			return true;
	return false;
}

static void pool_note_taken(struct nodma_usage *usage, unsigned int count)
{
	long used = atomic_long_add_return(count, &usage->used);
	long peak = atomic_long_read(&usage->peak);

	while (used > peak && !atomic_long_try_cmpxchg(&usage->peak, &peak, used))
		;
}

static u32 pool_state(const struct nodma_pool_user *user, u32 kind, enum dma_data_direction dir)
{
	return FIELD_PREP(STATE_USER, user->id) | FIELD_PREP(STATE_DIRECTION, dir) | kind;
}

/* Coherent memory is not counted among what the device may write: it does not come and go with requests. */
static bool pool_is_inbound(u32 state)
{
	return !(state & STATE_RING) && FIELD_GET(STATE_DIRECTION, state) != DMA_TO_DEVICE;
}

/* Take slots for @size bytes, and write down what they hold: @state, and that of the first one STATE_FIRST as well. */
static bool pool_take(struct nodma_pool_user *user, void *origin, size_t size, unsigned int align, u32 state,
		      unsigned int *slot)
{
	struct nodma_pool *pool = user->pool;
	unsigned int count = pool_slots_for(size), i;

	if (!pool_take_any(user, count, align, pool_is_inbound(state), slot)) {
		atomic_long_inc(&user->full);
		return false;
	}
	for (i = 0; i < count; i++) {
		size_t offset = (size_t)i << NODMA_SLOT_SHIFT;

		pool->slot[*slot + i] = (struct nodma_slot){
			.origin = origin ? origin + offset : NULL,
			.left = size - offset,
			.state = i ? state : state | STATE_FIRST,
		};
	}
	pool_note_taken(&user->usage, count);
	if (pool->region.shared)
		pool_note_taken(&pool->usage, count);
	return true;
}

/* @state is what the first slot had before it was claimed. */
static void pool_give_back(struct nodma_pool_user *user, unsigned int slot, u32 state)
{
	struct nodma_area *area = pool_area_of(user, slot);
	struct nodma_pool *pool = user->pool;
	unsigned int count = pool_slots_for(pool->slot[slot].left);
	unsigned long flags;

	memset(&pool->slot[slot], 0, count * sizeof(pool->slot[slot]));
	spin_lock_irqsave(&area->lock, flags);
	pool_unmark(area, slot - area->first, count);
	if (pool_is_inbound(state))
		area->inbound -= count;
	spin_unlock_irqrestore(&area->lock, flags);
	atomic_long_sub(count, &user->usage.used);
	if (pool->region.shared)
		atomic_long_sub(count, &pool->usage.used);
}

/*
 * Claim a mapping, to end it: it begins at @address, is @size bytes long, is this function's, and of the kind that
 * @wanted says. Of two that try, one gets it. Where it cannot be, the state returned is 0.
 */
static u32 pool_claim(struct nodma_pool_user *user, dma_addr_t address, size_t size, u32 wanted, unsigned int *slot)
{
	struct nodma_pool *pool = user->pool;
	struct nodma_slot *first;
	u32 state;

	if (!pool_address_slot(pool, address, slot) || pool_slot_address(pool, *slot) != address)
		return 0;
	first = &pool->slot[*slot];
	state = READ_ONCE(first->state);
	if ((state & ~STATE_ABANDONED) != wanted || first->left != size)
		return 0;
	return cmpxchg(&first->state, state, 0) == state ? state : 0;
}

/*
 * What is not mapped is unmapped, or synchronized. A driver does not do this, so the device has changed the chains of
 * its descriptors. When it was given up this is no news: what it has done before comes to light when buffers are taken
 * back.
 */
static void pool_complain(struct nodma_pool_user *user, const char *what, dma_addr_t address, size_t size)
{
	if (READ_ONCE(user->dead))
		return;
	atomic_long_inc(&user->wrong);
	dev_warn_ratelimited(user->dev, "nodma: %s of %zu bytes at %pad, which are not mapped\n", what, size, &address);
	nodma_watch_tampered(user);
}

/*
 * Copy, and zero, by words. The string instructions that memcpy() and memset() are on x86 go byte by byte where the
 * processor is emulated, and cost such a guest a quarter of its requests; elsewhere both wait for the memory.
 */
#define WORDS		4
#define STRIDE		(WORDS * sizeof(u64))

static void pool_copy(void *to, const void *from, size_t size)
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

static void pool_zero(void *to, size_t size)
{
	static const u64 zeros[WORDS];
	size_t at;

	for (at = 0; at + STRIDE <= size; at += STRIDE) {
		__builtin_memcpy(to + at, zeros, STRIDE);
		barrier();
	}
	memset(to + at, 0, size - at);
}

static void pool_copy_in(struct nodma_pool_user *user, unsigned int slot, size_t within, size_t size)
{
	struct nodma_pool *pool = user->pool;
	void *origin = READ_ONCE(pool->slot[slot].origin);

	if (unlikely(!origin))
		return;		/* abandoned */
	pool_copy(pool_slot_memory(pool, slot) + within, origin + within, size);
	this_cpu_add(user->counters->to_device, size);
}

static void pool_copy_out(struct nodma_pool_user *user, unsigned int slot, size_t within, size_t size)
{
	struct nodma_pool *pool = user->pool;
	void *origin = READ_ONCE(pool->slot[slot].origin);

	if (unlikely(!origin))
		return;
	if (unlikely(READ_ONCE(user->dead)))
		/* As a bus does that nobody answers on. No status byte of virtio's is ones and means success. */
		memset(origin + within, 0xff, size);
	else
		pool_copy(origin + within, pool_slot_memory(pool, slot) + within, size);
	this_cpu_add(user->counters->from_device, size);
}

/**
 * nodma_pool_map() - bounce a buffer
 * @user: what the function has of its pool
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
dma_addr_t nodma_pool_map(struct nodma_pool_user *user, void *origin, size_t size, enum dma_data_direction dir,
			  unsigned long attrs)
{
	struct nodma_pool *pool = user->pool;
	unsigned int slot;

	if (unlikely(READ_ONCE(user->dead)))
		return DMA_MAPPING_ERROR;
	if (!size || size > nodma_pool_max_mapping(pool)) {
		atomic_long_inc(&user->refused);
		dev_dbg(user->dev, "nodma: refused to map %zu bytes, at most %zu\n", size, nodma_pool_max_mapping(pool));
		return DMA_MAPPING_ERROR;
	}
	if (!pool_take(user, origin, size, 1, pool_state(user, 0, dir), &slot)) {
		dev_dbg(user->dev, "nodma: no room to map %zu bytes\n", size);
		return DMA_MAPPING_ERROR;
	}
	this_cpu_inc(user->counters->maps);
	if (dir == DMA_FROM_DEVICE)
		pool_zero(pool_slot_memory(pool, slot), size);
	else if (!(attrs & DMA_ATTR_SKIP_CPU_SYNC))
		pool_copy_in(user, slot, 0, size);
	return pool_slot_address(pool, slot);
}

void nodma_pool_unmap(struct nodma_pool_user *user, dma_addr_t address, size_t size, enum dma_data_direction dir,
		      unsigned long attrs)
{
	unsigned int slot;
	u32 state = pool_claim(user, address, size, pool_state(user, STATE_FIRST, dir), &slot);

	if (unlikely(!state))
		return pool_complain(user, "an unmapping", address, size);
	if (dir != DMA_TO_DEVICE && !(attrs & DMA_ATTR_SKIP_CPU_SYNC))
		pool_copy_out(user, slot, 0, size);
	pool_give_back(user, slot, state);
	this_cpu_inc(user->counters->unmaps);
}

/* Bring a part of a mapping up to date, towards the device or from it. */
void nodma_pool_sync(struct nodma_pool_user *user, dma_addr_t address, size_t size, bool to_device)
{
	struct nodma_pool *pool = user->pool;
	size_t within = (address - pool->base) & (NODMA_SLOT_SIZE - 1);
	unsigned int slot;
	u32 state;

	if (unlikely(!pool_address_slot(pool, address, &slot)))
		return pool_complain(user, "a synchronization", address, size);
	state = READ_ONCE(pool->slot[slot].state);
	if (unlikely(FIELD_GET(STATE_USER, state) != user->id || state & STATE_RING ||
		     within + size > pool->slot[slot].left))
		return pool_complain(user, "a synchronization", address, size);
	if (to_device)
		pool_copy_in(user, slot, within, size);
	else
		pool_copy_out(user, slot, within, size);
}

/**
 * nodma_pool_alloc() - take memory that driver and device share, as rings are
 * @user: what the function has of its pool
 * @size: bytes
 * @address: set to the address for the device
 *
 * Return: the memory, zeroed and on a page, or NULL.
 */
void *nodma_pool_alloc(struct nodma_pool_user *user, size_t size, dma_addr_t *address)
{
	struct nodma_pool *pool = user->pool;
	unsigned int slot;

	if (!size || size > (size_t)pool->area_slots << NODMA_SLOT_SHIFT)
		return NULL;
	size = PAGE_ALIGN(size);
	if (!pool_take(user, NULL, size, NODMA_RING_SLOTS, pool_state(user, STATE_RING, DMA_BIDIRECTIONAL), &slot))
		return NULL;
	*address = pool_slot_address(pool, slot);
	return memset(pool_slot_memory(pool, slot), 0, size);
}

void nodma_pool_free(struct nodma_pool_user *user, dma_addr_t address, size_t size)
{
	u32 wanted = pool_state(user, STATE_FIRST | STATE_RING, DMA_BIDIRECTIONAL);
	unsigned int slot;
	u32 state = pool_claim(user, address, PAGE_ALIGN(size), wanted, &slot);

	if (unlikely(!state))
		return pool_complain(user, "a freeing", address, size);
	pool_give_back(user, slot, state);
}

/*
 * Do something with each mapping of a function, coherent memory left out, which nobody else ends meanwhile. It is over
 * if @each returns 0, else the first slot's state is what that returns.
 */
static unsigned int pool_for_each(struct nodma_pool_user *user,
				  u32 (*each)(struct nodma_pool_user *user, unsigned int slot, u32 state))
{
	struct nodma_pool *pool = user->pool;
	unsigned int slot, found = 0;

	for (slot = 0; slot < pool->slots; slot++) {
		u32 *first = &pool->slot[slot].state;
		u32 state = READ_ONCE(*first);

		if (!(slot % SZ_4K))
			cond_resched();
		if (FIELD_GET(STATE_USER, state) != user->id || !(state & STATE_FIRST) || state & STATE_RING)
			continue;
		if (cmpxchg(first, state, 0) != state)
			continue;
		found++;
		state = each(user, slot, state);
		if (state)
			smp_store_release(first, state);
	}
	return found;
}

static u32 pool_abandon_one(struct nodma_pool_user *user, unsigned int slot, u32 state)
{
	struct nodma_slot *at = &user->pool->slot[slot];
	unsigned int count = pool_slots_for(at->left), i;

	if (pool_is_inbound(state) && at->origin)
		memset(at->origin, 0xff, at->left);
	for (i = 0; i < count; i++)
		WRITE_ONCE(at[i].origin, NULL);
	return state | STATE_ABANDONED;
}

/**
 * nodma_pool_abandon() - let go of what a function has bounced, for its device was given up
 * @user: what the function has of its pool, dead
 *
 * What the device should have written reads as ones from now on, and is not touched again. The slots stay
 * taken until they are unmapped, or swept: the device may write them still.
 */
void nodma_pool_abandon(struct nodma_pool_user *user)
{
	pool_for_each(user, pool_abandon_one);
}

static u32 pool_sweep_one(struct nodma_pool_user *user, unsigned int slot, u32 state)
{
	if (!(state & STATE_ABANDONED))
		return state;
	pool_give_back(user, slot, state);
	return 0;
}

/* Free what was abandoned and never unmapped. Return how much else is mapped. */
unsigned int nodma_pool_sweep(struct nodma_pool_user *user)
{
	if (atomic_long_read(&user->usage.used))
		pool_for_each(user, pool_sweep_one);
	return atomic_long_read(&user->usage.used);
}

/*
 * A quarter of an area: a request whose mapping is refused is tried again by the block layer, forever, so
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
			pool_mark(area, at, count);
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
	pool_unmark(area, slot - area->first, count);
	area->aside -= count;
	spin_unlock_irqrestore(&area->lock, flags);
}

/**
 * nodma_pool_init() - make a pool of a region
 * @pool: zeroed but for its region, which is checked, and its size
 *
 * Return: 0, -ENOMEM, -EPERM if the region can only be mapped in a way that its device cannot read.
 */
int nodma_pool_init(struct nodma_pool *pool)
{
	const struct nodma_region *region = &pool->region;
	phys_addr_t start = pci_resource_start(region->owner, region->bar) + region->offset;
	unsigned int i, words;
	int error = -ENOMEM;

	pool->slots = pool->size >> NODMA_SLOT_SHIFT;
	pool->areas = clamp_t(unsigned int, pool->slots / AREA_SLOTS_MIN, 1, roundup_pow_of_two(num_possible_cpus()));
	pool->area_slots = round_down(pool->slots / pool->areas, NODMA_RING_SLOTS);
	pool->base = region->profile->base(region);
	pool->slot = kvcalloc(pool->slots, sizeof(*pool->slot), GFP_KERNEL | __GFP_NOWARN);
	pool->area = kcalloc(pool->areas, sizeof(*pool->area), GFP_KERNEL | __GFP_NOWARN);
	words = BITS_TO_LONGS(pool->slots - (pool->areas - 1) * pool->area_slots);	/* the last area's */
	pool->bitmaps = kvcalloc(array_size(words, pool->areas), sizeof(long), GFP_KERNEL | __GFP_NOWARN);
	if (!pool->slot || !pool->area || !pool->bitmaps)
		goto exit;
	pool->memory = nodma_memory_map(&region->owner->dev, start, pool->size, &pool->memory_type);
	if (IS_ERR(pool->memory)) {
		error = PTR_ERR(pool->memory);
		pool->memory = NULL;
		goto exit;
	}
	for (i = 0; i < pool->areas; i++) {
		struct nodma_area *area = &pool->area[i];

		spin_lock_init(&area->lock);
		area->first = i * pool->area_slots;
		area->slots = i == pool->areas - 1 ? pool->slots - area->first : pool->area_slots;
		area->bitmap = pool->bitmaps + i * words;
	}
	pool_mark(&pool->area[0], 0, region->profile->unused);
	pool->area[0].aside = region->profile->unused;
	return 0;

exit:
	nodma_pool_exit(pool);
	return error;
}

void nodma_pool_exit(struct nodma_pool *pool)
{
	if (pool->memory)
		nodma_memory_unmap(pool->memory);
	kvfree(pool->bitmaps);
	kfree(pool->area);
	kvfree(pool->slot);
}
