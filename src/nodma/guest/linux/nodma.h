/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Restricted DMA for virtio-pci: every ring, indirect table and buffer of a device goes through a region
 * in one of its own BARs, so that it never does DMA to system memory.
 */
#ifndef NODMA_H
#define NODMA_H

#include <linux/atomic.h>
#include <linux/device.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/workqueue.h>

#if !defined(CONFIG_ARCH_HAS_DMA_OPS) && !defined(CONFIG_DMA_OPS)
#error "This kernel has no DMA operations per device, so nothing can be put in their place."
#endif

/* The proposal's numbers (RFC of 2 April 2025), each once. */
#define NODMA_F_SWIOTLB			27	/* the feature: addresses lie in the region */
#define NODMA_PCI_CAP_SWIOTLB		10	/* cfg_type of the capability that names the region */
#define NODMA_PCI_CAP_LENGTH		16	/* bytes; 20 if it can name another function's BAR */
#define NODMA_PCI_CAP_SHARED_LENGTH	20
#define NODMA_PCI_CAP_DEVICE		16	/* offsets of the bytes that the longer form adds */
#define NODMA_PCI_CAP_FUNCTION		17
#define NODMA_PCI_CAP_SELF		0xff

#define NODMA_SLOT_SHIFT		11	/* bounce slots of 2 KiB, as SWIOTLB's */
#define NODMA_SLOT_SIZE			(1UL << NODMA_SLOT_SHIFT)
#define NODMA_ALL_ONES			0xff	/* what a byte reads where nobody answers */
#define NODMA_REGION_MIN		(64UL << 10)	/* bytes; less holds no useful ring and buffers */

/* Where the region is. Filled by nodma_region_find(), which checks all of it. */
struct nodma_region {
	int bar;
	u64 offset;		/* bytes into the BAR */
	u64 length;		/* bytes */
	bool claimed;		/* by us, with pci_request_region() */
};

/* What a slot holds. Every slot of a mapping has one, so that a part of it can be synchronized. */
struct nodma_slot {
	void *origin;		/* the memory bounced, where this slot begins; NULL for coherent memory */
	u32 left;		/* bytes of the mapping from here to its end; 0: the slot is free */
	u8 first;		/* this slot begins its mapping */
	u8 inbound;		/* the device may write it */
};

struct nodma_counters {
	u64 maps;		/* of buffers; rings are not counted */
	u64 unmaps;
	u64 to_device;		/* bytes copied */
	u64 from_device;
};

/* A part of the pool with a lock of its own; each CPU begins looking in another one. */
struct nodma_area {
	spinlock_t lock;
	unsigned int first;	/* its first slot, counted from the pool's */
	unsigned int slots;
	unsigned int used;
	unsigned int inbound;	/* of those used, how many the device may write */
	unsigned int hint;	/* no slot below this one is free */
	unsigned long *bitmap;	/* one bit a slot: taken */
	struct nodma_counters counters;
} ____cacheline_aligned_in_smp;

struct nodma_pool {
	struct device *dev;	/* the PCI function, for the log */
	void *memory;
	dma_addr_t base;	/* the address that the device knows the first byte by */
	unsigned int slots;
	unsigned int area_slots;
	unsigned int areas;
	struct nodma_area *area;
	struct nodma_slot *slot;
	unsigned long *bitmaps;
	bool dead;		/* the device is gone: what it should have written reads as ones */
	atomic_long_t full ____cacheline_aligned_in_smp;	/* mappings that found no room */
	atomic_long_t refused;	/* mappings that could never have been: too large, or not memory */
	atomic_long_t used ____cacheline_aligned_in_smp;	/* slots */
	atomic_long_t peak;
};

/* A virtio device whose DMA goes through its region. */
struct nodma_device {
	struct list_head link;
	struct virtio_device *vdev;
	struct pci_dev *pdev;
	struct nodma_region region;
	struct nodma_pool pool;

	struct dma_map_ops dma_ops;		/* in place of what pdev had */
	const struct dma_map_ops *old_dma_ops;
	struct virtio_config_ops config;	/* in place of what vdev had */
	const struct virtio_config_ops *old_config;

	struct mutex vqs_lock;			/* the virtqueues stay while it is held */
	bool live;				/* they are there, and DRIVER_OK was set */
	bool broken;
	u64 progress;				/* when last looked at */
	struct delayed_work watch;
};

/* region.c */
int nodma_region_find(struct pci_dev *pdev, struct nodma_region *region);
void nodma_region_release(struct pci_dev *pdev, struct nodma_region *region);

/* pool.c */
int nodma_pool_init(struct nodma_pool *pool, struct pci_dev *pdev, const struct nodma_region *region);
void nodma_pool_exit(struct nodma_pool *pool);
dma_addr_t nodma_pool_map(struct nodma_pool *pool, void *origin, size_t size, enum dma_data_direction dir,
			  unsigned long attrs);
void nodma_pool_unmap(struct nodma_pool *pool, dma_addr_t address, size_t size, enum dma_data_direction dir,
		      unsigned long attrs);
void nodma_pool_sync(struct nodma_pool *pool, dma_addr_t address, size_t size, bool to_device);
void *nodma_pool_alloc(struct nodma_pool *pool, size_t size, dma_addr_t *address);
void nodma_pool_free(struct nodma_pool *pool, dma_addr_t address, size_t size);
size_t nodma_pool_max_mapping(const struct nodma_pool *pool);
struct nodma_counters nodma_pool_count(const struct nodma_pool *pool);

/* dma.c */
int nodma_dma_install(struct nodma_device *nodma);
void nodma_dma_restore(struct nodma_device *nodma);

/* features.c */
void nodma_features_install(struct nodma_device *nodma);
void nodma_features_restore(struct nodma_device *nodma);

/* watch.c */
int nodma_watch_init(void);
void nodma_watch_exit(void);
void nodma_watch_prepare(struct nodma_device *nodma);
void nodma_watch_start(struct nodma_device *nodma);
void nodma_watch_stop(struct nodma_device *nodma);

/* stats.c */
extern const struct attribute_group nodma_stats_group;

static inline struct nodma_device *nodma_of_virtio(struct virtio_device *vdev)
{
	return container_of(vdev->config, struct nodma_device, config);
}

#endif
