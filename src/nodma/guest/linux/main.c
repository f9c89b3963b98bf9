// SPDX-License-Identifier: GPL-2.0
/*
 * The hook on the virtio bus. virtio_pci stays bound, and every virtio driver too; between a device's
 * appearance on the bus and its driver's probe, its DMA and its negotiation are put on other rails.
 */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <uapi/linux/virtio_config.h>

#include "nodma.h"

static LIST_HEAD(devices);
static DEFINE_MUTEX(devices_lock);
static const struct pci_dev *leaving;	/* the function that is being removed, or was last; never followed */

static struct nodma_device *find(struct virtio_device *vdev)
{
	struct nodma_device *nodma;

	lockdep_assert_held(&devices_lock);
	list_for_each_entry(nodma, &devices, link)
		if (nodma->vdev == vdev)
			return nodma;
	return NULL;
}

static bool is_ours(struct virtio_device *vdev)
{
	bool ours;

	mutex_lock(&devices_lock);
	ours = find(vdev);
	mutex_unlock(&devices_lock);
	return ours;
}

/* The PCI function behind a virtio device that virtio_pci made; other transports have none. */
static struct pci_dev *function_of(struct virtio_device *vdev)
{
	struct device *parent = vdev->dev.parent;
	struct pci_driver *driver;

	if (!parent || !dev_is_pci(parent))
		return NULL;
	driver = pci_dev_driver(to_pci_dev(parent));
	return driver && !strcmp(driver->name, "virtio-pci") ? to_pci_dev(parent) : NULL;
}

static void say_what_was_taken_on(const struct nodma_device *nodma)
{
	const struct nodma_pool *pool = nodma->share.pool;
	const struct nodma_region *region = &pool->region;
	bool borrowed = region->owner != nodma->pdev;

	dev_info(&nodma->vdev->dev, "nodma: bounces through %llu KiB of BAR %d%s%s at %pad, profile %s\n",
		 region->length >> 10, region->bar, borrowed ? " of " : "", borrowed ? pci_name(region->owner) : "",
		 &pool->base, region->profile->name);
	if (region->shared)
		dev_info(&nodma->vdev->dev,
			 "nodma: functions that share this pool can read each other's data; %lu KiB are reserved for this one\n",
			 nodma->share.own.slots * NODMA_SLOT_SIZE >> 10);
}

/* Take a device on, if it has a region. Its driver has not begun. */
static int attach(struct virtio_device *vdev)
{
	struct pci_dev *pdev = function_of(vdev);
	struct nodma_device *nodma;
	int error;

	lockdep_assert_held(&devices_lock);
	if (!pdev)
		return -ENODEV;
	nodma = kzalloc(sizeof(*nodma), GFP_KERNEL);
	if (!nodma)
		return -ENOMEM;
	nodma->vdev = vdev;
	nodma->pdev = pdev;
	get_device(&vdev->dev);
	nodma_watch_prepare(nodma);
	error = nodma_share_join(&nodma->share, pdev, nodma_features_offered(vdev));
	if (error)
		goto free;
	if (nodma->share.pool->region.owner == leaving) {
		dev_warn(&vdev->dev, "nodma: no bouncing: the owner of its pool is being removed\n");
		error = -ENODEV;
		goto leave;
	}
	error = nodma_dma_install(nodma);
	if (error)
		goto leave;
	nodma_features_install(nodma);
	error = sysfs_create_group(&vdev->dev.kobj, &nodma_stats_group);
	if (error)
		goto restore;
	virtio_reset_device(vdev);	/* a probe that failed without us left its status behind */
	virtio_add_status(vdev, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	list_add(&nodma->link, &devices);
	say_what_was_taken_on(nodma);
	return 0;

restore:
	nodma_features_restore(nodma);
	nodma_dma_restore(nodma);
leave:
	nodma_share_leave(&nodma->share);
free:
	put_device(&vdev->dev);
	kfree(nodma);
	return error;
}

/* Let go of a device: no driver is bound to it any more. */
static void detach(struct nodma_device *nodma)
{
	long used = atomic_long_read(&nodma->share.usage.used);

	if (used)
		dev_warn(&nodma->vdev->dev, "nodma: %ld slots were never given back\n", used);
	sysfs_remove_group(&nodma->vdev->dev.kobj, &nodma_stats_group);
	nodma_features_restore(nodma);
	nodma_dma_restore(nodma);
	nodma_share_leave(&nodma->share);
	list_del(&nodma->link);
	put_device(&nodma->vdev->dev);
	kfree(nodma);
}

static int on_bus_event(struct notifier_block *block, unsigned long event, void *data)
{
	struct virtio_device *vdev = dev_to_virtio(data);
	struct nodma_device *nodma;

	mutex_lock(&devices_lock);
	nodma = find(vdev);
	switch (event) {
	/*
	 * Not when the device appears: a driver that is bound later gets another try, as when a pool's owner came back.
	 * A device without a region goes on as it is; other errors were said. While a driver uses a device of ours,
	 * this module cannot be unloaded.
	 */
	case BUS_NOTIFY_BIND_DRIVER:
		if (nodma || !attach(vdev))
			__module_get(THIS_MODULE);
		break;
	case BUS_NOTIFY_DRIVER_NOT_BOUND:
	case BUS_NOTIFY_UNBOUND_DRIVER:
		if (nodma)
			module_put(THIS_MODULE);
		break;
	case BUS_NOTIFY_REMOVED_DEVICE:
		if (nodma)
			detach(nodma);
		break;
	}
	mutex_unlock(&devices_lock);
	return NOTIFY_DONE;
}

static struct notifier_block bus_events = { .notifier_call = on_bus_event };

static struct nodma_device *user_of(const struct pci_dev *owner)
{
	struct nodma_device *nodma;

	lockdep_assert_held(&devices_lock);
	list_for_each_entry(nodma, &devices, link)
		if (nodma->share.pool->region.owner == owner)
			return nodma;
	return NULL;
}

/*
 * An owner is being removed, and its BAR still answers: whoever uses its pool finishes what is under way and loses
 * its driver. When this returns nobody touches that BAR any more.
 */
static void evict_users(struct pci_dev *owner)
{
	struct nodma_device *nodma;

	mutex_lock(&devices_lock);
	leaving = owner;
	while ((nodma = user_of(owner))) {
		struct virtio_device *vdev = nodma->vdev;

		dev_warn(&vdev->dev, "nodma: %s, which owns its pool, is removed, so it loses its driver\n", pci_name(owner));
		nodma->orphaned = true;		/* a driver that comes now fails in its probe */
		get_device(&vdev->dev);
		mutex_unlock(&devices_lock);
		device_release_driver(&vdev->dev);
		device_lock(&vdev->dev);	/* no probe is under way */
		mutex_lock(&devices_lock);
		nodma = find(vdev);
		if (nodma)
			detach(nodma);
		device_unlock(&vdev->dev);
		put_device(&vdev->dev);
	}
	mutex_unlock(&devices_lock);
}

static int on_pci_event(struct notifier_block *block, unsigned long event, void *data)
{
	struct pci_dev *pdev = to_pci_dev(data);

	if (event == BUS_NOTIFY_DEL_DEVICE)
		evict_users(pdev);
	else if (event == BUS_NOTIFY_ADD_DEVICE && pdev == leaving)
		leaving = NULL;		/* another function, where that one's structure was */
	return NOTIFY_DONE;
}

static struct notifier_block pci_events = { .notifier_call = on_pci_event };

/*
 * A device that was there before this module: its driver starts over, if the device is to be taken on. One without a
 * driver may have one that failed without us.
 */
static int take_on(struct device *dev, void *unused)
{
	struct virtio_device *vdev = dev_to_virtio(dev);
	struct nodma_pool *pool = NULL;

	if (is_ours(vdev) || !function_of(vdev))
		return 0;
	if (dev->driver) {
		pool = nodma_pool_get(function_of(vdev), nodma_features_offered(vdev));
		if (IS_ERR(pool))
			return 0;
		device_release_driver(dev);
	}
	if (device_attach(dev) < 0)
		dev_warn(dev, "nodma: no driver took the device\n");
	if (pool)
		nodma_pool_put(pool, function_of(vdev));	/* held until now, so that its driver gets what was looked at */
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
	int error = nodma_watch_init();

	if (error)
		return error;
	error = register_virtio_driver(&bus_finder);
	if (error)
		goto exit;
	virtio_bus = bus_finder.driver.bus;
	unregister_virtio_driver(&bus_finder);
	error = bus_register_notifier(&pci_bus_type, &pci_events);
	if (error)
		goto exit;
	error = bus_register_notifier(virtio_bus, &bus_events);
	if (error)
		goto ignore_pci;
	bus_for_each_dev(virtio_bus, NULL, NULL, take_on);
	return 0;

ignore_pci:
	bus_unregister_notifier(&pci_bus_type, &pci_events);
exit:
	nodma_watch_exit();
	return error;
}

static void __exit nodma_exit(void)
{
	struct nodma_device *nodma, *next;

	bus_unregister_notifier(virtio_bus, &bus_events);
	bus_unregister_notifier(&pci_bus_type, &pci_events);
	mutex_lock(&devices_lock);
	list_for_each_entry_safe(nodma, next, &devices, link) {
		device_release_driver(&nodma->vdev->dev);	/* only an unload by force finds one */
		detach(nodma);
	}
	mutex_unlock(&devices_lock);
	nodma_watch_exit();
}

module_init(nodma_init);
module_exit(nodma_exit);
MODULE_DESCRIPTION("Restricted DMA for virtio-pci: bounces all of a device's DMA through a region in its own BAR");
MODULE_AUTHOR("The nodma authors");
MODULE_LICENSE("GPL");
MODULE_VERSION(NODMA_VERSION);
MODULE_SOFTDEP("pre: virtio_pci");
