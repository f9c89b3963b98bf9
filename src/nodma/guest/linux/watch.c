// SPDX-License-Identifier: GPL-2.0
/*
 * The watch. A device that is gone, that asks for a reset, that was reset without its driver's knowledge, or that returned
 * what it was not given, answers nothing any more, and Linux would wait for it forever. Once in watch_ms its virtqueues
 * are looked at, and, where buffers are out and none came back, its status. A device that is merely silent is waited for, as
 * any disk is, until somebody waits for its driver: whoever binds or unbinds that may hold locks that the whole machine
 * waits for.
 *
 * A lost device is given up: it is broken for virtio, what it owes ends with errors, and nothing that it can write is looked
 * at again.
 */
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <uapi/linux/virtio_config.h>

#include "nodma.h"

static unsigned int watch_ms = 1000;
module_param(watch_ms, uint, 0444);
MODULE_PARM_DESC(watch_ms, "How often to look whether a device is lost, in milliseconds (0: never)");

static unsigned int leave_ms = 10000;
module_param(leave_ms, uint, 0444);
MODULE_PARM_DESC(leave_ms, "How long a silent device may keep its driver from being unbound, in milliseconds (0: forever)");

static unsigned int probe_ms = 60000;
module_param(probe_ms, uint, 0444);
MODULE_PARM_DESC(probe_ms, "How long a silent device may keep its driver's probe waiting, in milliseconds (0: forever)");

static struct workqueue_struct *watch_queue;

/*
 * Nobody else is at the virtqueues afterwards: they are broken, and whoever had not seen that yet held a spinlock,
 * which synchronize_rcu() waits for.
 */
static void watch_give_up(struct nodma_device *nodma, const char *why)
{
	struct virtio_device *vdev = nodma->vdev;
	struct device *disk = nodma->disk ? get_device(nodma->disk) : nodma_disk_get(vdev);
	unsigned int ended = 0;

	nodma->broken = true;
	WRITE_ONCE(nodma->user.dead, true);
	nodma_rings_cut(nodma);
	virtio_break_device(vdev);
	synchronize_rcu();
	nodma_rings_settle(nodma);
	nodma_pool_abandon(&nodma->user);
	if (disk) {
		nodma_rings_drain(nodma);
		ended = nodma_disk_end_requests(disk);
		put_device(disk);
	}
	dev_err(&vdev->dev, "nodma: the device %s: given up, %u requests ended with an error\n", why, ended);
}

/* A device answers, but nothing comes back. Return why to give it up, or NULL. */
static const char *watch_patience(const struct nodma_device *nodma)
{
	unsigned long leaving = nodma->leaving, probing = READ_ONCE(nodma->probing);
	unsigned int limit = leaving ? leave_ms : probe_ms;
	unsigned long since = leaving ?: probing;

	if (!since || !limit)
		return NULL;
	if (time_after(nodma->stalled, since))
		since = nodma->stalled;
	if (time_before(jiffies, since + msecs_to_jiffies(limit)))
		return NULL;
	return leaving ? "keeps its driver from being unbound, and answers nothing" :
			 "keeps its driver's probe waiting, and answers nothing";
}

/* Return why to give a device up, or NULL. */
static const char *watch_verdict(struct nodma_device *nodma)
{
	struct nodma_counters counters = nodma_pool_user_count(&nodma->user);
	bool stalled = counters.maps != counters.unmaps && counters.unmaps == nodma->progress;
	u8 status;

	nodma->progress = counters.unmaps;
	if (READ_ONCE(nodma->tampered))
		return "has changed its descriptors";
	if (nodma_rings_broken(nodma))
		return "returned what it was not given";
	if (!stalled) {
		nodma->stalled = 0;
		return NULL;
	}
	if (!nodma->stalled)
		nodma->stalled = jiffies ?: 1;
	status = nodma->old_config->get_status(nodma->vdev);
	if (status == NODMA_ALL_ONES)
		return "answers with ones only, it is gone";
	if (status & VIRTIO_CONFIG_S_NEEDS_RESET)
		return "asks for a reset";
	if (!(status & VIRTIO_CONFIG_S_DRIVER_OK))
		return "was reset without its driver's knowledge";
	return watch_patience(nodma);
}

static void watch_look(struct work_struct *work)
{
	struct nodma_device *nodma = container_of(to_delayed_work(work), struct nodma_device, watch);
	const char *why;

	mutex_lock(&nodma->vqs_lock);
	if (nodma->live && !nodma->broken) {
		why = watch_verdict(nodma);
		if (why)
			watch_give_up(nodma, why);
		else if (watch_ms)
			queue_delayed_work(watch_queue, &nodma->watch, msecs_to_jiffies(watch_ms));
	}
	mutex_unlock(&nodma->vqs_lock);
}

/* The device's driver is about to be unbound. */
void nodma_watch_leaving(struct nodma_device *nodma)
{
	mutex_lock(&nodma->vqs_lock);
	nodma->leaving = jiffies ?: 1;
	nodma->disk = nodma_disk_get(nodma->vdev);
	mutex_unlock(&nodma->vqs_lock);
}

void nodma_watch_prepare(struct nodma_device *nodma)
{
	mutex_init(&nodma->vqs_lock);
	spin_lock_init(&nodma->rings_lock);
	INIT_DELAYED_WORK(&nodma->watch, watch_look);
}

/* The driver is ready: its virtqueues are there. */
void nodma_watch_start(struct nodma_device *nodma)
{
	mutex_lock(&nodma->vqs_lock);
	if (!nodma->live) {
		nodma->live = true;
		nodma->broken = false;
		nodma->tampered = false;
		nodma->stalled = 0;
		if (watch_ms)
			queue_delayed_work(watch_queue, &nodma->watch, msecs_to_jiffies(watch_ms));
	}
	mutex_unlock(&nodma->vqs_lock);
}

/* The driver resets the device, or its virtqueues are about to go, or the device is. */
void nodma_watch_stop(struct nodma_device *nodma)
{
	mutex_lock(&nodma->vqs_lock);
	nodma->live = false;
	mutex_unlock(&nodma->vqs_lock);
	cancel_delayed_work_sync(&nodma->watch);
}

/* What a driver unmaps shows that its device is not to be trusted; it may hold a spinlock. */
void nodma_watch_tampered(struct nodma_pool_user *user)
{
	struct nodma_device *nodma = container_of(user, struct nodma_device, user);

	WRITE_ONCE(nodma->tampered, true);
	nodma_rings_cut(nodma);
	mod_delayed_work(watch_queue, &nodma->watch, 0);
}

int nodma_watch_init(void)
{
	/* Ending a lost device's requests frees memory, so it must not wait for memory. */
	watch_queue = alloc_workqueue("nodma", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	return watch_queue ? 0 : -ENOMEM;
}

void nodma_watch_exit(void)
{
	destroy_workqueue(watch_queue);
}
