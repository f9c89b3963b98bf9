// SPDX-License-Identifier: GPL-2.0
/*
 * The hook on the virtio bus. virtio_pci stays bound, and every virtio driver too; between a device's
 * appearance on the bus and its driver's probe, its DMA and its negotiation are put on other rails.
 */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>

#include "nodma.h"

static LIST_HEAD(devices);
static DEFINE_MUTEX(devices_lock);

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

/* Take a device on, if it has a region. No driver may be bound to it. */
static int attach(struct virtio_device *vdev)
{
	struct pci_dev *pdev = function_of(vdev);
	struct nodma_device *nodma;
	int error;

	if (!pdev)
		return -ENODEV;
	nodma = kzalloc(sizeof(*nodma), GFP_KERNEL);
	if (!nodma)
		return -ENOMEM;
	nodma->vdev = vdev;
	nodma->pdev = pdev;
	get_device(&vdev->dev);
	nodma_watch_prepare(nodma);
	error = nodma_region_find(pdev, &nodma->region);
	if (error)
		goto free;
	error = nodma_pool_init(&nodma->pool, pdev, &nodma->region);
	if (error)
		goto release;
	error = nodma_dma_install(nodma);
	if (error)
		goto exit;
	nodma_features_install(nodma);
	error = sysfs_create_group(&vdev->dev.kobj, &nodma_stats_group);
	if (error)
		goto restore;
	mutex_lock(&devices_lock);
	list_add(&nodma->link, &devices);
	mutex_unlock(&devices_lock);
	dev_info(&vdev->dev, "nodma: bounces through %llu KiB of BAR %d at %pad\n", nodma->region.length >> 10,
		 nodma->region.bar, &nodma->pool.base);
	return 0;

restore:
	nodma_features_restore(nodma);
	nodma_dma_restore(nodma);
exit:
	nodma_pool_exit(&nodma->pool);
release:
	nodma_region_release(pdev, &nodma->region);
free:
	put_device(&vdev->dev);
	kfree(nodma);
	return error;
}

/* Let go of a device: no driver is bound to it any more. */
static void detach(struct nodma_device *nodma)
{
	long used = atomic_long_read(&nodma->pool.used);

	if (used)
		dev_warn(&nodma->vdev->dev, "nodma: %ld slots were never given back\n", used);
	sysfs_remove_group(&nodma->vdev->dev.kobj, &nodma_stats_group);
	nodma_features_restore(nodma);
	nodma_dma_restore(nodma);
	nodma_pool_exit(&nodma->pool);
	nodma_region_release(nodma->pdev, &nodma->region);
	list_del(&nodma->link);
	put_device(&nodma->vdev->dev);
	kfree(nodma);
}

static int on_bus_event(struct notifier_block *block, unsigned long event, void *data)
{
	struct virtio_device *vdev = dev_to_virtio(data);
	struct nodma_device *nodma;

	switch (event) {
	case BUS_NOTIFY_ADD_DEVICE:
		attach(vdev);	/* a device without a region goes on as it is; other errors were said */
		break;
	case BUS_NOTIFY_REMOVED_DEVICE:
		mutex_lock(&devices_lock);
		nodma = find(vdev);
		if (nodma)
			detach(nodma);
		mutex_unlock(&devices_lock);
		break;
	/* While a driver uses a device, this module cannot be unloaded. */
	case BUS_NOTIFY_BIND_DRIVER:
		if (is_ours(vdev))
			__module_get(THIS_MODULE);
		break;
	case BUS_NOTIFY_DRIVER_NOT_BOUND:
	case BUS_NOTIFY_UNBOUND_DRIVER:
		if (is_ours(vdev))
			module_put(THIS_MODULE);
		break;
	}
	return NOTIFY_DONE;
}

static struct notifier_block bus_events = { .notifier_call = on_bus_event };

/* A device that was there before this module: its driver, if it has one, starts over. */
static int take_on(struct device *dev, void *unused)
{
	struct virtio_device *vdev = dev_to_virtio(dev);
	struct nodma_region region;

	if (is_ours(vdev) || !function_of(vdev) || nodma_region_find(function_of(vdev), &region))
		return 0;
	nodma_region_release(function_of(vdev), &region);
	device_release_driver(dev);
	attach(vdev);			/* if it fails, all stays as it was */
	virtio_reset_device(vdev);	/* a failed probe left its status behind */
	if (device_attach(dev) < 0)
		dev_warn(dev, "nodma: no driver took the device\n");
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
	error = bus_register_notifier(virtio_bus, &bus_events);
	if (error)
		goto exit;
	bus_for_each_dev(virtio_bus, NULL, NULL, take_on);
	return 0;

exit:
	nodma_watch_exit();
	return error;
}

static void __exit nodma_exit(void)
{
	struct nodma_device *nodma, *next;

	bus_unregister_notifier(virtio_bus, &bus_events);
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
MODULE_VERSION("0.1.0");
MODULE_SOFTDEP("pre: virtio_pci");
