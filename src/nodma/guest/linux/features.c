// SPDX-License-Identifier: GPL-2.0
/*
 * Negotiation. A virtio driver knows nothing of the feature, and the transport drops what it does not
 * know, so the device's configuration operations are wrapped: they accept the feature on its behalf.
 */
#include <linux/virtio_ids.h>
#include <uapi/linux/virtio_config.h>

#include "nodma.h"

/* The first 64 of the features that a device offers; none of ours is behind them. */
u64 nodma_features_offered(struct virtio_device *vdev)
{
#ifdef VIRTIO_FEATURES_U64S	/* newer kernels have more */
	u64 offered[VIRTIO_FEATURES_U64S];

	virtio_get_features(vdev, offered);
	return offered[0];
#else
	return vdev->config->get_features(vdev);
#endif
}

/*
 * Accept the profile's feature (SW-D1, DMB-D1). The ring core asks for ACCESS_PLATFORM before it uses the DMA API, so
 * that is set on the driver's side at least; where the device does not offer it, it is not told of it. A device that
 * does not offer the profile's feature is bounced all the same (SW-D3).
 */
static int nodma_finalize_features(struct virtio_device *vdev)
{
	struct nodma_device *nodma = nodma_of_virtio(vdev);
	const struct nodma_profile *profile = nodma->share.pool->region.profile;
	u64 offered = nodma_features_offered(vdev);
	int error;

	if (nodma->orphaned)
		return -ENODEV;
	if (offered & BIT_ULL(profile->feature))
		__virtio_set_bit(vdev, profile->feature);
	else if (profile->by_feature)
		return -EINVAL;	/* it was there when the device was taken on: addresses would mean something else now */
	else
		dev_info(&vdev->dev, "nodma: the device has a region, and does not offer the feature\n");
	error = nodma->old_config->finalize_features(vdev);
	if (!error)
		__virtio_set_bit(vdev, VIRTIO_F_ACCESS_PLATFORM);
	return error;
}

static void nodma_set_status(struct virtio_device *vdev, u8 status)
{
	struct nodma_device *nodma = nodma_of_virtio(vdev);

	nodma->old_config->set_status(vdev, status);
	if (status & VIRTIO_CONFIG_S_DRIVER_OK)
		nodma_watch_start(nodma);
}

/* virtio_pci waits for a status of 0 after a reset, for ever; a device that is gone never shows one. */
static void nodma_reset(struct virtio_device *vdev)
{
	struct nodma_device *nodma = nodma_of_virtio(vdev);

	nodma_watch_stop(nodma);
	if (nodma->old_config->get_status(vdev) == NODMA_ALL_ONES)
		dev_dbg(&vdev->dev, "nodma: the device is gone, and not reset\n");
	else
		nodma->old_config->reset(vdev);
}

static void nodma_del_vqs(struct virtio_device *vdev)
{
	struct nodma_device *nodma = nodma_of_virtio(vdev);

	nodma_watch_stop(nodma);
	nodma->old_config->del_vqs(vdev);
}

void nodma_features_install(struct nodma_device *nodma)
{
	struct virtio_device *vdev = nodma->vdev;

	nodma->old_config = vdev->config;
	nodma->config = *vdev->config;
	nodma->config.finalize_features = nodma_finalize_features;
	nodma->config.set_status = nodma_set_status;
	nodma->config.reset = nodma_reset;
	nodma->config.del_vqs = nodma_del_vqs;
	vdev->config = &nodma->config;
}

void nodma_features_restore(struct nodma_device *nodma)
{
	nodma->vdev->config = nodma->old_config;
}
