// SPDX-License-Identifier: GPL-2.0
/*
 * The requests that a disk owes when its device is given up. The block layer knows them itself, and is asked; virtqueues,
 * which the device can write, are not. Their status bytes are ones by then (see nodma_pool_abandon()), which
 * virtio_blk takes for an error.
 */
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/percpu-refcount.h>
#include <linux/virtio_ids.h>

#include "nodma.h"

/* virtio_blk's disk is a child of its device. */
static int disk_find(struct device *dev, void *found)
{
	if (!dev->class || strcmp(dev->class->name, "block") || !dev->type || strcmp(dev->type->name, "disk"))
		return 0;
	get_device(dev);
	*(struct device **)found = dev;
	return 1;
}

static bool disk_end_one(struct request *request, void *ended)
{
	if (blk_mq_request_started(request) && !blk_mq_request_completed(request)) {
		blk_mq_complete_request(request);
		++*(unsigned int *)ended;
	}
	return true;
}

/**
 * nodma_disk_get() - find the disk of a block device
 * @vdev: the device
 *
 * A disk that is being removed is no longer found, while its requests are still waited for: this is asked before.
 *
 * Return: the disk, to be put with put_device(), or NULL.
 */
struct device *nodma_disk_get(struct virtio_device *vdev)
{
	struct device *found = NULL;

	if (vdev->id.device == VIRTIO_ID_BLOCK)
		device_for_each_child(&vdev->dev, &found, disk_find);
	return found;
}

/**
 * nodma_disk_end_requests() - end the requests that a block device has not answered
 * @disk: its disk; the virtqueues are broken, and nobody is at them
 *
 * Return: how many.
 */
unsigned int nodma_disk_end_requests(struct device *disk)
{
	struct request_queue *queue = dev_to_disk(disk)->queue;
	unsigned int ended = 0;

	if (!percpu_ref_tryget(&queue->q_usage_counter))
		return 0;	/* it has none any more, and its tags may go */
	blk_mq_quiesce_queue(queue);	/* none is being started */
	blk_mq_tagset_busy_iter(queue->tag_set, disk_end_one, &ended);
	blk_mq_unquiesce_queue(queue);
	blk_mq_start_stopped_hw_queues(queue, true);
	percpu_ref_put(&queue->q_usage_counter);
	return ended;
}
