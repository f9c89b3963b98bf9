/* What front.c and floor.c share. The structures are those of native.py, field by field. */
#ifndef NATIVE_H
#define NATIVE_H

#include <stdint.h>
#include <time.h>

enum { MAX_DEPTH = 256, MAX_KICK = 64, MAX_SEGMENTS = 16 };
enum { SUB_BITS = 5, BUCKETS = 60 << SUB_BITS };	/* latencies in ns: 32 buckets for each power of two */

/* A queue. The places are offsets in the window. */
struct queue {
	uint64_t base;		/* what makes an offset an address, as the device knows it */
	uint64_t desc, avail, used, cells, data;
	uint32_t cell_bytes, entries, depth;
	int32_t kick_fd;	/* a notification is: write these bytes there */
	uint32_t kick_bytes;
	uint16_t added, seen;	/* requests made available, and taken back, since the queue was enabled */
	uint8_t kick[MAX_KICK];
	int64_t sent[MAX_DEPTH];
};

struct load {
	uint64_t blocks;	/* the disk has so many, of `bytes` each */
	uint64_t seed;
	int64_t nanoseconds;
	uint32_t bytes, segment;	/* of a request, and of one descriptor at most */
	uint32_t write, polled;
	int32_t call_fd;	/* the eventfd that interrupts come by */
	volatile uint32_t stop;	/* set by another thread: give up */
};

struct result {
	uint64_t done, failed, kicks, sleeps;
	int64_t nanoseconds, cpu;
	uint64_t latencies[BUCKETS];
};

static inline int64_t now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* A random block (xorshift64*): the same sequence from the same seed. */
static inline uint64_t any_block(uint64_t *state, uint64_t blocks)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return (uint64_t)((unsigned __int128)(*state * 0x2545f4914f6cdd1dULL) * blocks >> 64);
}

static inline uint32_t bucket_of(uint64_t value)
{
	uint32_t shift;

	if (value < 1u << SUB_BITS)
		return value;
	shift = 63 - __builtin_clzll(value) - SUB_BITS;
	return ((shift + 1) << SUB_BITS) + (value >> shift) - (1u << SUB_BITS);
}

/* Bytes of the part of a request that begins at `at`. */
static inline uint32_t part_bytes(const struct load *load, uint32_t at)
{
	return load->bytes - at < load->segment ? load->bytes - at : load->segment;
}

#endif
