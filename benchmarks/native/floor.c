/* What the system calls alone cost: the least that a device process could take. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "native.h"

/* Do what a load comes to, by preadv(2) or pwritev(2) on the same data buffers, and nothing else. */
int bare_run(uint8_t *memory, const struct queue *queue, int fd, const struct load *load, struct result *result)
{
	int64_t begin = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID), time = begin;
	struct iovec parts[MAX_SEGMENTS];
	uint64_t random = load->seed;

	memset(result, 0, sizeof(*result));
	if (load->bytes > MAX_SEGMENTS * (uint64_t)load->segment)
		return -EINVAL;
	for (; time - begin < load->nanoseconds; time = now(CLOCK_MONOTONIC)) {
		for (uint32_t slot = 0; slot < queue->depth; slot++) {
			uint8_t *data = memory + queue->data + (uint64_t)slot * load->bytes;
			off_t offset = any_block(&random, load->blocks) * load->bytes;
			ssize_t moved;
			int count = 0;

			for (uint32_t at = 0; at < load->bytes; at += load->segment)
				parts[count++] = (struct iovec){ data + at, part_bytes(load, at) };
			moved = load->write ? pwritev(fd, parts, count, offset) : preadv(fd, parts, count, offset);
			if (moved != load->bytes)
				return moved < 0 ? -errno : -EIO;
		}
		result->done += queue->depth;
	}
	result->nanoseconds = time - begin;
	result->cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
	return 0;
}

/* Send one message again and again, and take its reply of so many bytes, for a time. Gives 0, or -errno. */
int ping_pong(int fd, const uint8_t *message, uint32_t bytes, uint32_t reply_bytes, int64_t nanoseconds,
	      struct result *result)
{
	int64_t begin = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID), time = begin;
	uint8_t reply[4096];

	memset(result, 0, sizeof(*result));
	if (reply_bytes > sizeof(reply))
		return -EINVAL;
	while (time - begin < nanoseconds) {
		int64_t sent = time;
		ssize_t moved = send(fd, message, bytes, MSG_NOSIGNAL);

		if (moved == bytes)
			moved = recv(fd, reply, reply_bytes, MSG_WAITALL);
		if (moved != reply_bytes)
			return moved < 0 ? -errno : -EIO;
		time = now(CLOCK_MONOTONIC);
		result->latencies[bucket_of(time - sent)]++;
		result->done++;
	}
	result->nanoseconds = time - begin;
	result->cpu = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
	return 0;
}

/* Receive so many bytes, and send as many as a reply has, until the peer is gone: a server that does nothing. */
void echo(int fd, uint32_t bytes, uint32_t reply_bytes)
{
	uint8_t buffer[4096] = { 0 };

	if (bytes > sizeof(buffer) || reply_bytes > sizeof(buffer))
		return;
	while (recv(fd, buffer, bytes, MSG_WAITALL) == bytes && send(fd, buffer, reply_bytes, MSG_NOSIGNAL) == reply_bytes)
		;
}
