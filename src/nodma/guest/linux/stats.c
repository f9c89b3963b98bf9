// SPDX-License-Identifier: GPL-2.0
/* What the pool holds and did: /sys/bus/virtio/devices/virtioN/nodma/, one number a file. */
#include <linux/sysfs.h>

#include "nodma.h"

static struct nodma_device *stats_device(struct device *dev)
{
	return nodma_of_virtio(dev_to_virtio(dev));
}

/* A private pool is counted by its only function. */
static struct nodma_usage *stats_usage(struct nodma_device *nodma)
{
	return nodma->user.pool->region.shared ? &nodma->user.pool->usage : &nodma->user.usage;
}

#define SHOW(name, value)									\
static ssize_t name##_show(struct device *dev, struct device_attribute *attr, char *buffer)	\
{												\
	struct nodma_device *nodma __maybe_unused = stats_device(dev);				\
												\
	return sysfs_emit(buffer, "%llu\n", (unsigned long long)(value));			\
}												\
static DEVICE_ATTR_RO(name)

/* The function's own. */
SHOW(used, atomic_long_read(&nodma->user.usage.used));
SHOW(peak, atomic_long_read(&nodma->user.usage.peak));
SHOW(full, atomic_long_read(&nodma->user.full));
SHOW(refused, atomic_long_read(&nodma->user.refused));
SHOW(maps, nodma_pool_user_count(&nodma->user).maps);
SHOW(unmaps, nodma_pool_user_count(&nodma->user).unmaps);
SHOW(bytes_to_device, nodma_pool_user_count(&nodma->user).to_device);
SHOW(bytes_from_device, nodma_pool_user_count(&nodma->user).from_device);
SHOW(reserved, nodma->user.own.slots);
SHOW(broken, nodma->broken);
SHOW(wrong, atomic_long_read(&nodma->user.wrong));

/* The pool's. */
SHOW(feature, nodma->user.pool->region.profile->feature);
SHOW(size, nodma->user.pool->size);
SHOW(slot_size, NODMA_SLOT_SIZE);
SHOW(slots, nodma->user.pool->slots);
SHOW(areas, nodma->user.pool->areas);
SHOW(max_mapping, nodma_pool_max_mapping(nodma->user.pool));
SHOW(functions, READ_ONCE(nodma->user.pool->functions));
SHOW(pool_used, atomic_long_read(&stats_usage(nodma)->used));
SHOW(pool_peak, atomic_long_read(&stats_usage(nodma)->peak));

static struct attribute *stats_attributes[] = {
	&dev_attr_used.attr,		&dev_attr_peak.attr,		&dev_attr_full.attr,
	&dev_attr_refused.attr,		&dev_attr_maps.attr,		&dev_attr_unmaps.attr,
	&dev_attr_bytes_to_device.attr, &dev_attr_bytes_from_device.attr, &dev_attr_reserved.attr,
	&dev_attr_broken.attr,		&dev_attr_feature.attr,		&dev_attr_size.attr,
	&dev_attr_slot_size.attr,	&dev_attr_slots.attr,		&dev_attr_areas.attr,
	&dev_attr_max_mapping.attr,	&dev_attr_functions.attr,	&dev_attr_pool_used.attr,
	&dev_attr_pool_peak.attr,	&dev_attr_wrong.attr,		NULL,
};

const struct attribute_group nodma_stats_group = {
	.name = "nodma",
	.attrs = stats_attributes,
};
