// SPDX-License-Identifier: GPL-2.0
/*
 * The watch: a device that is gone, that asked for a reset, or that was reset without its driver's knowledge,
 * answers nothing any more, and Linux would wait for it for ever. Where buffers are out and none came back for a
 * second, its status is read; a device that is lost is broken, and what it owes ends in errors.
 */
#include <linux/blk-mq.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/virtio_ids.h>
#include <uapi/linux/virtio_config.h>

#include "nodma.h"

static unsigned int watch_ms = 1000;
module_param(watch_ms, uint, 0444);
MODULE_PARM_DESC(watch_ms, "How often to look whether a device is lost, in milliseconds (0: never)");

static struct workqueue_struct *workqueue;

/*
 * Finish the requests that a block device owes. They come from the virtqueues, where virtio_blk put its requests'
 * private data; their status bytes are ones now (see copy_out()), which virtio_blk takes for an error.
 *
 * Nobody else is at the virtqueues: they are broken, and whoever had not seen that yet held a spinlock,
 * with interrupts off, which synchronize_rcu() waits for.
 */
static unsigned int finish_requests(struct virtio_device *vdev)
{
	struct request_queue *queue = NULL;
	unsigned int finished = 0;
	struct virtqueue *vq;
	void *owed;

	virtio_device_for_each_vq(vdev, vq) {
		while ((owed = virtqueue_detach_unused_buf(vq))) {
			struct request *request = blk_mq_rq_from_pdu(owed);

			queue = request->q;
			blk_mq_complete_request(request);
			finished++;
		}
	}
	if (queue)
		blk_mq_start_stopped_hw_queues(queue, true);
	return finished;
}

static void give_up(struct nodma_device *nodma, const char *why)
{
	struct virtio_device *vdev = nodma->vdev;
	unsigned int finished = 0;

	nodma->broken = true;
	WRITE_ONCE(nodma->share.dead, true);
	virtio_break_device(vdev);
	synchronize_rcu();
	if (vdev->id.device == VIRTIO_ID_BLOCK)
		finished = finish_requests(vdev);
	dev_err(&vdev->dev, "nodma: the device %s: given up, %u requests ended with an error\n", why, finished);
}

static void look(struct work_struct *work)
{
	struct nodma_device *nodma = container_of(to_delayed_work(work), struct nodma_device, watch);
	struct nodma_counters counters;
	u8 status;

	mutex_lock(&nodma->vqs_lock);
	if (!nodma->live || nodma->broken)
		goto out;
	counters = nodma_share_count(&nodma->share);
	if (counters.maps != counters.unmaps && counters.unmaps == nodma->progress) {
		status = nodma->old_config->get_status(nodma->vdev);
		if (status == NODMA_ALL_ONES)
			give_up(nodma, "answers with ones only, it is gone");
		else if (status & VIRTIO_CONFIG_S_NEEDS_RESET)
			give_up(nodma, "asks for a reset");
		else if (!(status & VIRTIO_CONFIG_S_DRIVER_OK))
			give_up(nodma, "was reset behind its driver's back");
	}
	nodma->progress = counters.unmaps;
	if (!nodma->broken)
		queue_delayed_work(workqueue, &nodma->watch, msecs_to_jiffies(watch_ms));
out:
	mutex_unlock(&nodma->vqs_lock);
}

void nodma_watch_prepare(struct nodma_device *nodma)
{
	mutex_init(&nodma->vqs_lock);
	INIT_DELAYED_WORK(&nodma->watch, look);
}

/* The driver is ready: its virtqueues are there. */
void nodma_watch_start(struct nodma_device *nodma)
{
	mutex_lock(&nodma->vqs_lock);
	if (!nodma->live) {
		nodma->live = true;
		nodma->broken = false;
		WRITE_ONCE(nodma->share.dead, false);
		if (watch_ms)
			queue_delayed_work(workqueue, &nodma->watch, msecs_to_jiffies(watch_ms));
	}
	mutex_unlock(&nodma->vqs_lock);
}

/* The driver resets the device, or its virtqueues are about to go. */
void nodma_watch_stop(struct nodma_device *nodma)
{
	mutex_lock(&nodma->vqs_lock);
	nodma->live = false;
	mutex_unlock(&nodma->vqs_lock);
	cancel_delayed_work_sync(&nodma->watch);
}

int nodma_watch_init(void)
{
	/* Ending a lost device's requests frees memory, so it must not wait for memory. */
	workqueue = alloc_workqueue("nodma", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	return workqueue ? 0 : -ENOMEM;
}

void nodma_watch_exit(void)
{
	destroy_workqueue(workqueue);
}
