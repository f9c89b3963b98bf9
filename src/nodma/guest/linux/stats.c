// SPDX-License-Identifier: GPL-2.0
/* What the pool holds and did: /sys/bus/virtio/devices/virtioN/nodma/, one number a file. */
#include <linux/sysfs.h>

#include "nodma.h"

static struct nodma_device *nodma_of(struct device *dev)
{
	return nodma_of_virtio(dev_to_virtio(dev));
}

/* A private pool is counted by its only function. */
static struct nodma_usage *nodma_usage(struct nodma_device *nodma)
{
	return nodma->share.pool->region.shared ? &nodma->share.pool->usage : &nodma->share.usage;
}

#define SHOW(name, value)									\
static ssize_t name##_show(struct device *dev, struct device_attribute *attr, char *buffer)	\
{												\
	struct nodma_device *nodma __maybe_unused = nodma_of(dev);				\
												\
	return sysfs_emit(buffer, "%llu\n", (unsigned long long)(value));			\
}												\
static DEVICE_ATTR_RO(name)

/* The function's own. */
SHOW(used, atomic_long_read(&nodma->share.usage.used));
SHOW(peak, atomic_long_read(&nodma->share.usage.peak));
SHOW(full, atomic_long_read(&nodma->share.full));
SHOW(refused, atomic_long_read(&nodma->share.refused));
SHOW(maps, nodma_share_count(&nodma->share).maps);
SHOW(unmaps, nodma_share_count(&nodma->share).unmaps);
SHOW(bytes_to_device, nodma_share_count(&nodma->share).to_device);
SHOW(bytes_from_device, nodma_share_count(&nodma->share).from_device);
SHOW(reserved, nodma->share.own.slots);
SHOW(broken, nodma->broken);

/* The pool's. */
SHOW(feature, nodma->share.pool->region.profile->feature);
SHOW(size, nodma->share.pool->region.length);
SHOW(slot_size, NODMA_SLOT_SIZE);
SHOW(slots, nodma->share.pool->slots);
SHOW(areas, nodma->share.pool->areas);
SHOW(max_mapping, nodma_pool_max_mapping(nodma->share.pool));
SHOW(functions, READ_ONCE(nodma->share.pool->functions));
SHOW(pool_used, atomic_long_read(&nodma_usage(nodma)->used));
SHOW(pool_peak, atomic_long_read(&nodma_usage(nodma)->peak));

static struct attribute *nodma_stats[] = {
	&dev_attr_used.attr,		&dev_attr_peak.attr,		&dev_attr_full.attr,
	&dev_attr_refused.attr,		&dev_attr_maps.attr,		&dev_attr_unmaps.attr,
	&dev_attr_bytes_to_device.attr, &dev_attr_bytes_from_device.attr, &dev_attr_reserved.attr,
	&dev_attr_broken.attr,		&dev_attr_feature.attr,		&dev_attr_size.attr,
	&dev_attr_slot_size.attr,	&dev_attr_slots.attr,		&dev_attr_areas.attr,
	&dev_attr_max_mapping.attr,	&dev_attr_functions.attr,	&dev_attr_pool_used.attr,
	&dev_attr_pool_peak.attr,	NULL,
};

const struct attribute_group nodma_stats_group = {
	.name = "nodma",
	.attrs = nodma_stats,
};
