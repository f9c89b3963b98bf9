// SPDX-License-Identifier: GPL-2.0
/*
 * The hook on the virtio bus. virtio_pci stays bound, and every virtio driver too; from before a driver's probe until
 * after its remove, a device's DMA and its negotiation are put on other rails.
 *
 * A device's own lock is held whenever it is taken on or let go. The list's lock is held for the list only: nothing waits
 * for a device under it.
 */
#include <linux/completion.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <uapi/linux/virtio_config.h>

#include "nodma.h"

static unsigned int take_on_ms = 10000;
module_param(take_on_ms, uint, 0444);
MODULE_PARM_DESC(take_on_ms, "How long loading waits for a driver to let go of a device, in milliseconds");

static LIST_HEAD(devices);
static DEFINE_MUTEX(devices_lock);

static struct nodma_device *device_find(struct virtio_device *vdev)
{
	struct nodma_device *nodma, *found = NULL;

	mutex_lock(&devices_lock);
	list_for_each_entry(nodma, &devices, link)
		if (nodma->vdev == vdev)
			found = nodma;
	mutex_unlock(&devices_lock);
	return found;
}

/* The PCI function behind a virtio device that virtio_pci made; other transports have none. */
static struct pci_dev *device_function(struct virtio_device *vdev)
{
	struct device *parent = vdev->dev.parent;
	struct pci_driver *driver;

	if (!parent || !dev_is_pci(parent))
		return NULL;
	driver = pci_dev_driver(to_pci_dev(parent));
	return driver && !strcmp(driver->name, "virtio-pci") ? to_pci_dev(parent) : NULL;
}

static void device_announce(const struct nodma_device *nodma)
{
	const struct nodma_pool *pool = nodma->user.pool;
	const struct nodma_region *region = &pool->region;
	bool borrowed = region->owner != nodma->pdev;

	dev_info(&nodma->vdev->dev, "nodma: bounces through %llu KiB of BAR %d%s%s at %pad, mapped %s, profile %s\n",
		 pool->size >> 10, region->bar, borrowed ? " of " : "", borrowed ? pci_name(region->owner) : "",
		 &pool->base, pool->memory_type, region->profile->name);
	if (region->shared)
		dev_info(&nodma->vdev->dev,
			 "nodma: functions that share this pool can read each other's data; %lu KiB are reserved for this one\n",
			 nodma->user.own.slots * NODMA_SLOT_SIZE >> 10);
}

/*
 * A function that uses another one's pool is its consumer: the driver core unbinds it before its owner's driver goes,
 * suspends it before its owner, and gets it its driver back when the owner has one again. The link goes with either.
 *
 * Return: 0, or -EPROBE_DEFER while the owner has no driver: the driver core tries again when one is bound.
 */
static int device_link_to_owner(struct nodma_device *nodma)
{
	struct pci_dev *owner = nodma->user.pool->region.owner;
	struct device *consumer = &nodma->vdev->dev;
	struct device_link *link;

	if (owner == nodma->pdev)
		return 0;
	link = device_link_add(consumer, &owner->dev, DL_FLAG_AUTOPROBE_CONSUMER);
	if (!link) {
		dev_warn(consumer, "nodma: no bouncing: cannot be linked to %s, which owns its pool\n", pci_name(owner));
		return -ENODEV;
	}
	if (READ_ONCE(link->status) == DL_STATE_CONSUMER_PROBE)
		return 0;
	dev_info(consumer, "nodma: waits for a driver of %s, which owns its pool\n", pci_name(owner));
	return -EPROBE_DEFER;
}

/* Take a device on, if it has a region. Its driver has not begun; the device's lock is held. */
static int device_attach_to(struct virtio_device *vdev)
{
	struct pci_dev *pdev = device_function(vdev);
	struct nodma_device *nodma;
	int error;

	if (!pdev)
		return -ENODEV;
	nodma = kzalloc(sizeof(*nodma), GFP_KERNEL);
	if (!nodma)
		return -ENOMEM;
	nodma->vdev = vdev;
	nodma->pdev = pdev;
	nodma->probing = jiffies ?: 1;
	nodma_watch_prepare(nodma);
	error = nodma_pool_user_join(&nodma->user, pdev, nodma_features_offered(vdev));
	if (error)
		goto free;
	error = nodma_registers_map(pdev, &nodma->registers);
	if (error) {
		dev_warn(&vdev->dev, "nodma: no bouncing: its registers cannot be mapped: error %d\n", error);
		goto leave;
	}
	error = nodma_dma_install(nodma);
	if (error)
		goto unmap;
	nodma_config_install(nodma);
	error = sysfs_create_group(&vdev->dev.kobj, &nodma_stats_group);
	if (error)
		goto restore;
	/*
	 * From here on it is ours, and must not be left to a driver that waits for it without a bound. A probe that failed
	 * without us left its status behind.
	 */
	nodma->refusal = device_link_to_owner(nodma);
	error = nodma_config_reset(nodma);
	if (error)
		dev_err(&vdev->dev, "nodma: the device %s: not used\n",
			error == -ENODEV ? "is gone" : "did not finish its reset in time");
	else
		virtio_add_status(vdev, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	mutex_lock(&devices_lock);
	list_add(&nodma->link, &devices);
	mutex_unlock(&devices_lock);
	if (!error && !nodma->refusal)
		device_announce(nodma);
	return 0;

restore:
	nodma_config_restore(nodma);
	nodma_dma_restore(nodma);
unmap:
	nodma_registers_unmap(pdev, &nodma->registers);
leave:
	nodma_pool_user_leave(&nodma->user);
free:
	kfree(nodma);
	return error;
}

/* Let go of a device: no driver is bound to it any more, and its lock is held. */
static void device_detach(struct nodma_device *nodma)
{
	mutex_lock(&devices_lock);
	list_del(&nodma->link);
	mutex_unlock(&devices_lock);
	sysfs_remove_group(&nodma->vdev->dev.kobj, &nodma_stats_group);
	nodma_watch_stop(nodma);
	nodma_config_restore(nodma);
	nodma_dma_restore(nodma);
	cancel_delayed_work_sync(&nodma->watch);	/* whoever unmapped something until now may have asked for it */
	put_device(nodma->disk);
	nodma_registers_unmap(nodma->pdev, &nodma->registers);
	nodma_pool_user_leave(&nodma->user);
	kfree(nodma);
}

static int on_bus_event(struct notifier_block *block, unsigned long event, void *data)
{
	struct virtio_device *vdev = dev_to_virtio(data);
	struct nodma_device *nodma = device_find(vdev);

	switch (event) {
	/* A device without a region is left as it is, and one that cannot be trusted; the log says why. */
	case BUS_NOTIFY_BIND_DRIVER:
		if (!nodma && try_module_get(THIS_MODULE) && device_attach_to(vdev))
			module_put(THIS_MODULE);
		break;
	case BUS_NOTIFY_BOUND_DRIVER:
		if (nodma)
			WRITE_ONCE(nodma->probing, 0);
		break;
	case BUS_NOTIFY_UNBIND_DRIVER:
		if (nodma)
			nodma_watch_leaving(nodma);
		break;
	case BUS_NOTIFY_DRIVER_NOT_BOUND:
	case BUS_NOTIFY_UNBOUND_DRIVER:
		if (nodma) {
			device_detach(nodma);
			module_put(THIS_MODULE);	/* whoever unloads it waits for this notifier */
		}
		break;
	}
	return NOTIFY_DONE;
}

static struct notifier_block bus_events = { .notifier_call = on_bus_event };

/*
 * A device that was there before this module: its driver starts over. That driver may wait for the device forever, with
 * the device's lock: so it is let go of by a work of its own, and whoever loads the module waits for that within a bound.
 */
struct take_on {
	struct work_struct work;
	struct completion done;
	struct kref users;
	struct device *dev;
	struct pci_dev *pdev;
	struct nodma_pool *pool;	/* held meanwhile, so that the driver gets what was looked at; NULL: no region */
};

static struct workqueue_struct *take_on_queue;

static void take_on_free(struct kref *users)
{
	struct take_on *task = container_of(users, struct take_on, users);

	put_device(task->dev);
	kfree(task);
}

static void take_on_work(struct work_struct *work)
{
	struct take_on *task = container_of(work, struct take_on, work);

	if (task->pool)
		device_release_driver(task->dev);
	if (device_attach(task->dev) < 0)
		dev_warn(task->dev, "nodma: no driver took the device\n");
	if (task->pool)
		nodma_pool_put(task->pool, task->pdev);
	complete(&task->done);
	kref_put(&task->users, take_on_free);
	module_put(THIS_MODULE);	/* the queue is destroyed before the module goes */
}

/* One without a driver may have one that failed without us. */
static int take_on(struct device *dev, void *unused)
{
	struct virtio_device *vdev = dev_to_virtio(dev);
	struct pci_dev *pdev = device_function(vdev);
	struct nodma_pool *pool = NULL;
	struct take_on *task;

	if (device_find(vdev) || !pdev)
		return 0;
	if (dev->driver) {
		pool = nodma_pool_get(pdev, nodma_features_offered(vdev));
		if (IS_ERR(pool))
			return 0;
	}
	task = kzalloc(sizeof(*task), GFP_KERNEL);
	if (!task) {
		if (pool)
			nodma_pool_put(pool, pdev);
		return -ENOMEM;
	}
	INIT_WORK(&task->work, take_on_work);
	init_completion(&task->done);
	kref_init(&task->users);
	kref_get(&task->users);
	task->dev = get_device(dev);
	task->pdev = pdev;
	task->pool = pool;
	__module_get(THIS_MODULE);
	queue_work(take_on_queue, &task->work);
	if (wait_for_completion_killable_timeout(&task->done, msecs_to_jiffies(take_on_ms)) <= 0)
		dev_warn(dev, "nodma: its driver waits for the device and does not let go of it: it is taken on when it does\n");
	kref_put(&task->users, take_on_free);
	return 0;
}

/* The virtio bus is not exported, but a registered driver knows it. No device has this id. */
static const struct virtio_device_id no_device[] = { { 0xffff, VIRTIO_DEV_ANY_ID }, { 0 } };

static int no_probe(struct virtio_device *vdev)
{
	return -ENODEV;
}

static void no_remove(struct virtio_device *vdev)
{
}

static struct virtio_driver bus_finder = {
	.driver.name = "nodma",
	.driver.owner = THIS_MODULE,
	.id_table = no_device,
	.probe = no_probe,
	.remove = no_remove,
};

static typeof(bus_finder.driver.bus) virtio_bus;	/* const or not, by the kernel */

static int __init nodma_init(void)
{
	int error = nodma_rings_init();

	if (error)
		return error;
	error = nodma_watch_init();
	if (error)
		return error;
	error = -ENOMEM;
	take_on_queue = alloc_workqueue("nodma_take_on", WQ_UNBOUND, 0);
	if (!take_on_queue)
		goto exit_watch;
	error = register_virtio_driver(&bus_finder);
	if (error)
		goto destroy;
	virtio_bus = bus_finder.driver.bus;
	unregister_virtio_driver(&bus_finder);
	error = bus_register_notifier(virtio_bus, &bus_events);
	if (error)
		goto destroy;
	bus_for_each_dev(virtio_bus, NULL, NULL, take_on);
	return 0;

destroy:
	destroy_workqueue(take_on_queue);
exit_watch:
	nodma_watch_exit();
	return error;
}

/* Return a device that is ours still, which only an unload by force finds. A reference is taken. */
static struct virtio_device *device_left(void)
{
	struct virtio_device *vdev = NULL;
	struct nodma_device *nodma;

	mutex_lock(&devices_lock);
	nodma = list_first_entry_or_null(&devices, struct nodma_device, link);
	if (nodma) {
		vdev = nodma->vdev;
		get_device(&vdev->dev);
	}
	mutex_unlock(&devices_lock);
	return vdev;
}

static void __exit nodma_exit(void)
{
	struct virtio_device *vdev;

	bus_unregister_notifier(virtio_bus, &bus_events);
	destroy_workqueue(take_on_queue);
	while ((vdev = device_left())) {
		struct nodma_device *nodma;

		device_release_driver(&vdev->dev);
		device_lock(&vdev->dev);
		nodma = device_find(vdev);
		if (nodma)
			device_detach(nodma);
		device_unlock(&vdev->dev);
		put_device(&vdev->dev);
	}
	nodma_watch_exit();
}

module_init(nodma_init);
module_exit(nodma_exit);
MODULE_DESCRIPTION("Restricted DMA for virtio-pci: bounces all of a device's DMA through a region in its own BAR");
MODULE_AUTHOR("The nodma authors");
MODULE_LICENSE("GPL");
MODULE_VERSION(NODMA_VERSION);
MODULE_SOFTDEP("pre: virtio_pci");
