// SPDX-License-Identifier: GPL-2.0
/* What the pool holds and did: /sys/bus/virtio/devices/virtioN/nodma/, one number a file. */
#include <linux/sysfs.h>

#include "nodma.h"

static struct nodma_device *nodma_of(struct device *dev)
{
	return nodma_of_virtio(dev_to_virtio(dev));
}

#define SHOW(name, value)									\
static ssize_t name##_show(struct device *dev, struct device_attribute *attr, char *buffer)	\
{												\
	struct nodma_device *nodma __maybe_unused = nodma_of(dev);				\
												\
	return sysfs_emit(buffer, "%llu\n", (unsigned long long)(value));			\
}												\
static DEVICE_ATTR_RO(name)

SHOW(size, nodma->region.length);
SHOW(slot_size, NODMA_SLOT_SIZE);
SHOW(slots, nodma->pool.slots);
SHOW(areas, nodma->pool.areas);
SHOW(max_mapping, nodma_pool_max_mapping(&nodma->pool));
SHOW(used, atomic_long_read(&nodma->pool.used));
SHOW(peak, atomic_long_read(&nodma->pool.peak));
SHOW(full, atomic_long_read(&nodma->pool.full));
SHOW(refused, atomic_long_read(&nodma->pool.refused));
SHOW(maps, nodma_pool_count(&nodma->pool).maps);
SHOW(unmaps, nodma_pool_count(&nodma->pool).unmaps);
SHOW(bytes_to_device, nodma_pool_count(&nodma->pool).to_device);
SHOW(bytes_from_device, nodma_pool_count(&nodma->pool).from_device);
SHOW(broken, nodma->broken);

static struct attribute *nodma_stats[] = {
	&dev_attr_size.attr,		&dev_attr_slot_size.attr,	&dev_attr_slots.attr,
	&dev_attr_areas.attr,		&dev_attr_max_mapping.attr,	&dev_attr_used.attr,
	&dev_attr_peak.attr,		&dev_attr_full.attr,		&dev_attr_refused.attr,
	&dev_attr_maps.attr,		&dev_attr_unmaps.attr,		&dev_attr_bytes_to_device.attr,
	&dev_attr_bytes_from_device.attr, &dev_attr_broken.attr,	NULL,
};

const struct attribute_group nodma_stats_group = {
	.name = "nodma",
	.attrs = nodma_stats,
};
