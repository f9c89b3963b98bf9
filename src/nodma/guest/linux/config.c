// SPDX-License-Identifier: GPL-2.0
/*
 * The device's configuration operations, wrapped. A virtio driver does not know the feature, and the transport drops what
 * it does not know: it is accepted on the driver's behalf. And what the device answers is held against what it can mean:
 * virtio's core and its drivers take a status, a configuration and a generation as they come.
 */
#include <linux/version.h>
#include <linux/virtio_ids.h>
#include <uapi/linux/virtio_config.h>

#include "nodma.h"

/* The configuration changed so often while it was read that it will not settle. */
#define GENERATIONS_MAX	100

/*
 * Features that are not passed on: with them virtio_pci and virtio_ring wait for the device without a bound, or
 * take more of its word than without.
 */
#define FEATURES_WITHHELD	(BIT_ULL(35) /* IN_ORDER */ | BIT_ULL(40) /* RING_RESET */ | BIT_ULL(41) /* ADMIN_VQ */)

/* The first 64 of the features that a device offers; none of ours comes after them. */
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

static u64 nodma_get_features(struct virtio_device *vdev)
{
	return nodma_of_virtio(vdev)->old_config->get_features(vdev) & ~FEATURES_WITHHELD;
}

#ifdef VIRTIO_FEATURES_U64S
static void nodma_get_extended_features(struct virtio_device *vdev, u64 *features)
{
	nodma_of_virtio(vdev)->old_config->get_extended_features(vdev, features);
	features[0] &= ~FEATURES_WITHHELD;
}
#endif

/*
 * Accept the profile's feature (SW-D1, DMB-D1). The ring core asks for ACCESS_PLATFORM before it uses the DMA API, so
 * that is set on the driver's side at least; a device that does not offer it is not told. A device that does not offer
 * the profile's feature is bounced all the same (SW-D3).
 */
static int nodma_finalize_features(struct virtio_device *vdev)
{
	struct nodma_device *nodma = nodma_of_virtio(vdev);
	const struct nodma_profile *profile;
	u64 offered;
	int error;

	if (nodma->refusal)
		return nodma->refusal;
	if (nodma->stuck)
		return -EIO;
	profile = nodma->user.pool->region.profile;
	offered = nodma_features_offered(vdev);
	if (offered & BIT_ULL(profile->feature))
		__virtio_set_bit(vdev, profile->feature);
	else if (profile->by_feature)
		return -EINVAL;	/* it was there when the device was taken on: addresses would mean something else now */
	else
		dev_info(&vdev->dev, "nodma: the device has a region, but does not offer the feature\n");
	error = nodma->old_config->finalize_features(vdev);
	if (!error)
		__virtio_set_bit(vdev, VIRTIO_F_ACCESS_PLATFORM);
	return error;
}

/*
 * The driver sets bits of the status, and a reset clears them. The device may take FEATURES_OK back, and ask for a reset.
 * Nothing else that it says is passed on: a device that is gone reads as having all bits, DRIVER_OK among them.
 */
static u8 nodma_get_status(struct virtio_device *vdev)
{
	struct nodma_device *nodma = nodma_of_virtio(vdev);
	u8 told;

	if (!nodma->status)
		return 0;
	told = nodma->old_config->get_status(vdev);
	if (told == NODMA_ALL_ONES)
		told = VIRTIO_CONFIG_S_NEEDS_RESET;
	told &= VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FEATURES_OK;
	return (nodma->status & ~VIRTIO_CONFIG_S_FEATURES_OK) | (nodma->status & told) |
	       (told & VIRTIO_CONFIG_S_NEEDS_RESET);
}

static void nodma_set_status(struct virtio_device *vdev, u8 status)
{
	struct nodma_device *nodma = nodma_of_virtio(vdev);
	bool ready = status & ~nodma->status & VIRTIO_CONFIG_S_DRIVER_OK;

	nodma->status |= status & ~VIRTIO_CONFIG_S_NEEDS_RESET;
	if (!nodma->status)
		return;		/* nothing but a device's wish, which is not a driver's status */
	nodma->old_config->set_status(vdev, nodma->status);
	if (ready)
		nodma_watch_start(nodma);
}

/**
 * nodma_config_reset() - reset the device, within a bound, and take its virtqueues from it
 * @nodma: the device
 *
 * Whether the device obeys or not, nothing that it writes from now on is looked at.
 *
 * Return: 0, or an error of nodma_registers_reset(): a driver gets no further than its probe's beginning then.
 */
int nodma_config_reset(struct nodma_device *nodma)
{
	struct virtio_device *vdev = nodma->vdev;
	bool had_status = nodma->status;
	int error;

	nodma_watch_stop(nodma);
	error = nodma_registers_reset(&nodma->registers);
	nodma->stuck = error;
	nodma->status = 0;
	if (error && !nodma->broken && had_status)
		dev_err(&vdev->dev, "nodma: the device %s: given up\n",
			error == -ENODEV ? "is gone and cannot be reset" : "did not finish its reset in time");
	nodma_rings_cut(nodma);
	virtio_break_device(vdev);
	virtio_synchronize_cbs(vdev);
	nodma_rings_settle(nodma);
	return error;
}

static void nodma_reset(struct virtio_device *vdev)
{
	nodma_config_reset(nodma_of_virtio(vdev));
}

static void nodma_get(struct virtio_device *vdev, unsigned int offset, void *to, unsigned int length)
{
	nodma_registers_get(&nodma_of_virtio(vdev)->registers, offset, to, length);
}

static void nodma_set(struct virtio_device *vdev, unsigned int offset, const void *from, unsigned int length)
{
	nodma_registers_set(&nodma_of_virtio(vdev)->registers, offset, from, length);
}

/* Drivers read the configuration again until its generation is what it was before. */
static u32 nodma_generation(struct virtio_device *vdev)
{
	struct nodma_device *nodma = nodma_of_virtio(vdev);
	u32 generation = nodma->old_config->generation(vdev);

	if (generation == READ_ONCE(nodma->generation)) {
		nodma->generations = 0;
	} else if (nodma->generations++ < GENERATIONS_MAX) {
		WRITE_ONCE(nodma->generation, generation);
	} else {
		dev_warn_ratelimited(&vdev->dev, "nodma: the device's configuration does not settle\n");
		generation = READ_ONCE(nodma->generation);
		nodma->generations = 0;
	}
	return generation;
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
static int nodma_find_vqs(struct virtio_device *vdev, unsigned int count, struct virtqueue *vqs[],
			  struct virtqueue_info infos[], struct irq_affinity *affinity)
{
	struct nodma_device *nodma = nodma_of_virtio(vdev);
	int error = nodma->old_config->find_vqs(vdev, count, vqs, infos, affinity);
#else
static int nodma_find_vqs(struct virtio_device *vdev, unsigned int count, struct virtqueue *vqs[],
			  vq_callback_t *callbacks[], const char *const names[], const bool *contexts,
			  struct irq_affinity *affinity)
{
	struct nodma_device *nodma = nodma_of_virtio(vdev);
	int error = nodma->old_config->find_vqs(vdev, count, vqs, callbacks, names, contexts, affinity);
#endif

	if (error)
		return error;
	error = nodma_rings_make(nodma);
	if (error)
		nodma->old_config->del_vqs(vdev);
	return error;
}

static void nodma_del_vqs(struct virtio_device *vdev)
{
	struct nodma_device *nodma = nodma_of_virtio(vdev);

	nodma_watch_stop(nodma);
	nodma_rings_free(nodma);
	nodma->old_config->del_vqs(vdev);
}

void nodma_config_install(struct nodma_device *nodma)
{
	struct virtio_device *vdev = nodma->vdev;
	struct virtio_config_ops *config = &nodma->config;

	nodma->old_config = vdev->config;
	*config = *vdev->config;
	if (config->get) {
		config->get = nodma_get;
		config->set = nodma_set;
	}
	if (config->generation)
		config->generation = nodma_generation;
	config->get_status = nodma_get_status;
	config->set_status = nodma_set_status;
	config->reset = nodma_reset;
	config->find_vqs = nodma_find_vqs;
	config->del_vqs = nodma_del_vqs;
	if (config->get_features)
		config->get_features = nodma_get_features;
#ifdef VIRTIO_FEATURES_U64S
	if (config->get_extended_features)
		config->get_extended_features = nodma_get_extended_features;
#endif
	config->finalize_features = nodma_finalize_features;
	vdev->config = config;
}

void nodma_config_restore(struct nodma_device *nodma)
{
	nodma->vdev->config = nodma->old_config;
}
