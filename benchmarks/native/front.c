/*
 * The front end of the benchmarks: the driver's end of virtio-blk queues.
 *
 * Rings are split virtqueues (virtio 1.4, 2.7), requests go through indirect tables, notifications and interrupts
 * through EVENT_IDX: as Linux does it, and with each peer alike. Only as much is checked as tells a wrong number from
 * a right one: the peers are trusted here.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "native.h"

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { HEADER_BYTES = 16, STATUS_AT = 16, TABLE_AT = 32 };	/* what lies where in a request's cell */
enum { SLEEP_MILLISECONDS = 100 };	/* then it is seen whether to stop */
enum { TYPE_IN = 0, TYPE_OUT = 1, NOT_DONE = 0xff, SECTOR = 512 };

struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};

struct request_header {
	uint32_t type, reserved;
	uint64_t sector;
};

struct used_element {
	uint32_t id, length;
};

/* The rings: 16-bit words are flags, index, then the entries; the other side's event index comes last. */
struct ring_view {
	uint16_t *avail;
	uint16_t *used;
	struct used_element *done;
};

struct run {
	uint8_t *memory;
	const struct load *load;
	struct result *result;
	uint64_t random;
	int64_t end;
	uint32_t in_flight;
};

const uint32_t front_sizes[] = { sizeof(struct queue), sizeof(struct load), sizeof(struct result) };

static struct ring_view view(const struct run *run, const struct queue *queue)
{
	uint8_t *used = run->memory + queue->used;

	return (struct ring_view){ (void *)(run->memory + queue->avail), (void *)used, (void *)(used + 4) };
}

static uint8_t *cell_of(const struct run *run, const struct queue *queue, uint32_t slot)
{
	return run->memory + queue->cells + (uint64_t)slot * queue->cell_bytes;
}

/* Write the chain of every request once; only the sector changes from then on. */
static void prepare(const struct run *run, const struct queue *queue)
{
	const struct load *load = run->load;
	struct descriptor *ring = (void *)(run->memory + queue->desc);
	uint16_t data_flags = DESC_NEXT | (load->write ? 0 : DESC_WRITE);

	for (uint32_t slot = 0; slot < queue->depth; slot++) {
		uint8_t *cell = cell_of(run, queue, slot);
		uint64_t address = queue->base + (cell - run->memory);
		uint64_t data = queue->base + queue->data + (uint64_t)slot * load->bytes;
		struct descriptor *table = (void *)(cell + TABLE_AT);
		uint16_t parts = 0;

		*(struct request_header *)cell = (struct request_header){ .type = load->write ? TYPE_OUT : TYPE_IN };
		table[parts++] = (struct descriptor){ address, HEADER_BYTES, DESC_NEXT, 1 };
		for (uint32_t at = 0; at < load->bytes; at += load->segment) {
			table[parts] = (struct descriptor){ data + at, part_bytes(load, at), data_flags, parts + 1 };
			parts++;
		}
		table[parts++] = (struct descriptor){ address + STATUS_AT, 1, DESC_WRITE, 0 };
		ring[slot] = (struct descriptor){ address + TABLE_AT, parts * sizeof(*table), DESC_INDIRECT, 0 };
	}
}

/* Put a request for some block in the queue; publish() shows it. */
static void add(struct run *run, struct queue *queue, uint32_t slot, int64_t time)
{
	uint8_t *cell = cell_of(run, queue, slot);
	uint64_t block = any_block(&run->random, run->load->blocks);

	((struct request_header *)cell)->sector = block * (run->load->bytes / SECTOR);
	cell[STATUS_AT] = NOT_DONE;
	view(run, queue).avail[2 + (queue->added++ & (queue->entries - 1))] = slot;
	queue->sent[slot] = time;
}

static int notify(const struct queue *queue)
{
	while (write(queue->kick_fd, queue->kick, queue->kick_bytes) != queue->kick_bytes) {
		struct pollfd room = { .fd = queue->kick_fd, .events = POLLOUT };

		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		poll(&room, 1, 1000);
	}
	return 0;
}

/* Let the device see what was added, and notify it if it wants that (2.7.10). Gives 0, or -errno. */
static int publish(const struct run *run, const struct queue *queue)
{
	struct ring_view ring = view(run, queue);
	uint16_t *event = (uint16_t *)&ring.done[queue->entries];
	uint16_t before = ring.avail[1];
	uint16_t behind;

	if (before == queue->added)
		return 0;
	__atomic_store_n(&ring.avail[1], queue->added, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);	/* the index before the device's wish */
	behind = queue->added - __atomic_load_n(event, __ATOMIC_RELAXED) - 1;
	if (behind >= (uint16_t)(queue->added - before))
		return 0;
	run->result->kicks++;
	return notify(queue);
}

/* Ask for an interrupt at the next completion; tell whether one came before that took hold (2.7.7). */
static int arm(const struct run *run, struct queue *queue)
{
	struct ring_view ring = view(run, queue);

	__atomic_store_n(&ring.avail[2 + queue->entries], queue->seen, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&ring.used[1], __ATOMIC_ACQUIRE) != queue->seen;
}

/* Take back what is done, and add as many again until the time is over. Gives how many were done, or -errno. */
static int turn(struct run *run, struct queue *queue)
{
	struct ring_view ring = view(run, queue);
	struct result *result = run->result;
	uint16_t used = __atomic_load_n(&ring.used[1], __ATOMIC_ACQUIRE);
	uint16_t count = used - queue->seen;
	int64_t time;
	int failed;

	if (!count)
		return 0;
	time = now(CLOCK_MONOTONIC);
	for (; queue->seen != used; queue->seen++) {
		uint32_t slot = ring.done[queue->seen & (queue->entries - 1)].id;

		if (slot >= queue->depth)
			return -EPROTO;
		result->failed += cell_of(run, queue, slot)[STATUS_AT] != 0;
		if (time >= run->end) {
			run->in_flight--;
			continue;
		}
		result->done++;
		result->latencies[bucket_of(time - queue->sent[slot])]++;
		add(run, queue, slot, time);
	}
	failed = publish(run, queue);
	return failed ? failed : count;
}

/* Spin once, or sleep until an interrupt. Some peers make the eventfd one that does not block. */
static int idle(struct run *run, struct queue *queues, uint32_t count)
{
	struct pollfd interrupt = { .fd = run->load->call_fd, .events = POLLIN };
	uint64_t interrupts;

	if (run->load->polled) {
#ifdef __x86_64__
		__builtin_ia32_pause();
#endif
		return 0;
	}
	for (uint32_t i = 0; i < count; i++)
		if (arm(run, &queues[i]))
			return 0;
	run->result->sleeps++;
	if (poll(&interrupt, 1, SLEEP_MILLISECONDS) == 1 && read(interrupt.fd, &interrupts, sizeof(interrupts)) < 0)
		return errno == EAGAIN ? 0 : -errno;
	return 0;
}

static int fill(struct run *run, struct queue *queue, int64_t time)
{
	if (queue->depth > MAX_DEPTH || queue->kick_bytes > MAX_KICK)
		return -EINVAL;
	prepare(run, queue);
	arm(run, queue);	/* when polled, that comes true again once in 65536 requests */
	for (uint32_t slot = 0; slot < queue->depth; slot++, run->in_flight++)
		add(run, queue, slot, time);
	return publish(run, queue);
}

/* Keep every queue full for a time, then let it run empty. Gives 0, or -errno; -ECANCELED if it was stopped. */
int front_run(uint8_t *memory, struct queue *queues, uint32_t count, const struct load *load, struct result *result)
{
	int64_t begin = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID);
	struct run run = { memory, load, result, load->seed, begin + load->nanoseconds, 0 };
	int status = 0;

	memset(result, 0, sizeof(*result));
	for (uint32_t i = 0; i < count && status >= 0; i++)
		status = fill(&run, &queues[i], begin);
	while (run.in_flight && !load->stop && status >= 0) {
		int busy = 0;

		for (uint32_t i = 0; i < count && status >= 0; i++) {
			status = turn(&run, &queues[i]);
			busy |= status;
		}
		if (!busy)
			status = idle(&run, queues, count);
	}
	result->nanoseconds = load->nanoseconds;
	result->cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
	return load->stop ? -ECANCELED : status < 0 ? status : 0;
}
