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

/* The numbers of profile swiotlb (RFC of 2 April 2025), each once. */
#define NODMA_F_SWIOTLB			27	/* the feature: addresses lie in the region */
#define NODMA_PCI_CAP_SWIOTLB		10	/* cfg_type of the capability that names the region */
#define NODMA_PCI_CAP_LENGTH		16	/* bytes; 20 if it can name another function's BAR */
#define NODMA_PCI_CAP_SHARED_LENGTH	20
#define NODMA_PCI_CAP_DEVICE		16	/* offsets of the bytes that the longer form adds */
#define NODMA_PCI_CAP_FUNCTION		17
#define NODMA_PCI_CAP_SELF		0xff

/* Those of profile dmb (virtio-spec issue 248). PROVISIONAL: the proposal has assigned none. */
#define NODMA_F_DMB			42	/* the feature: addresses are offsets from the region's start */
#define NODMA_COMMON_DMB_SHM_ID		64	/* offset in the common configuration, behind admin_queue_num; le16 */
#define NODMA_DMB_SHM_ID_MASK		0xff	/* as many of its bits as an id in a capability has */

#define NODMA_SLOT_SHIFT		11	/* bounce slots of 2 KiB, as SWIOTLB's */
#define NODMA_SLOT_SIZE			(1UL << NODMA_SLOT_SHIFT)
#define NODMA_RING_ALIGN		SZ_4K	/* the alignment of coherent memory */
#define NODMA_RING_SLOTS		(NODMA_RING_ALIGN / NODMA_SLOT_SIZE)
#define NODMA_ALL_ONES			0xff	/* what a byte reads where nobody answers */
#define NODMA_REGION_MIN		(64UL << 10)	/* bytes; less holds no useful ring and buffers */
#define NODMA_CLAIMS_MAX		12	/* so many capabilities of 16 bytes have room behind a PCI header */

/* What one of virtio's vendor capabilities says. */
struct nodma_claim {
	u8 size;		/* of the capability itself, in bytes */
	u8 type;
	u8 bar;
	u8 id;
	u8 device;		/* whose BAR it is; NODMA_PCI_CAP_SELF also where the capability has no such byte */
	u8 function;
	u64 offset;		/* bytes into the BAR */
	u64 length;		/* bytes */
};

/* All of a function's, read once: what is checked is what is used. */
struct nodma_claims {
	unsigned int count;
	struct nodma_claim claim[NODMA_CLAIMS_MAX];
};

struct nodma_region;

/* A way to restrict DMA, as it was proposed. profile.c says all that differs. */
struct nodma_profile {
	const char *name;
	unsigned int feature;
	u64 needs;		/* features without which it is not accepted */
	bool by_feature;	/* the feature tells that the device has it; else the capability does */
	bool shares;		/* the capability can name another function's BAR */
	u8 cfg_type;		/* of the capability that tells of the region */
	u8 cap_size;		/* bytes that it has at least */
	unsigned int unused;	/* slots at the region's start that hold nothing */
	int (*id)(struct pci_dev *pdev, const struct nodma_claims *claims);	/* of the capability; < 0: there is none */
	dma_addr_t (*base)(const struct nodma_region *region);	/* the address of the region's first byte */
};

/* Where a function's region is. Filled by nodma_region_find(), which checks all of it. */
struct nodma_region {
	const struct nodma_profile *profile;
	struct pci_dev *pdev;	/* the function that is to use it */
	struct pci_dev *owner;	/* the one whose BAR it lies in, most often the same; a reference is held */
	int bar;
	u64 offset;		/* bytes into the BAR */
	u64 length;		/* bytes */
	bool shared;		/* the owner lets others use it */
	bool beside;		/* other structures lie in the BAR, which virtio_pci claims for them */
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

/* A part of the pool with a lock of its own. Each CPU begins looking in another one; a reservation is one, too. */
struct nodma_area {
	spinlock_t lock;
	unsigned int first;	/* its first slot, counted from the pool's */
	unsigned int slots;
	unsigned int used;
	unsigned int aside;	/* of those used, how many are no longer the area's to hand out: reservations */
	unsigned int inbound;	/* of those used, how many the device may write */
	unsigned int hint;	/* no slot below this one is free */
	unsigned long *bitmap;	/* one bit a slot: taken */
} ____cacheline_aligned_in_smp;

/* Slots that hold something. */
struct nodma_usage {
	atomic_long_t used;
	atomic_long_t peak;
};

/* The slots of one region, and the functions that use them: one, or several if the region is shared. */
struct nodma_pool {
	struct list_head link;
	unsigned int functions;
	unsigned int borrowers;	/* those of them that are not the owner */
	u8 reset_methods[PCI_NUM_RESET_METHODS];	/* the owner's, kept while there are borrowers */
	struct nodma_region region;
	bool claimed;		/* the BAR, by us, with pci_request_region() */
	void *memory;
	dma_addr_t base;	/* the address that the device knows the first byte by */
	unsigned int slots;
	unsigned int area_slots;
	unsigned int areas;
	struct nodma_area *area;
	struct nodma_slot *slot;
	unsigned long *bitmaps;
	struct nodma_usage usage ____cacheline_aligned_in_smp;	/* of all functions; counted if the region is shared */
};

/* What one function has of a pool. */
struct nodma_share {
	struct nodma_pool *pool;
	struct device *dev;	/* the PCI function, for the log */
	struct nodma_area own;	/* its reservation: slots that are nobody else's; 0 where it has none */
	bool dead;		/* the device is gone: what it should have written reads as ones */
	struct nodma_counters __percpu *counters;
	struct nodma_usage usage ____cacheline_aligned_in_smp;
	atomic_long_t full;	/* mappings that found no room */
	atomic_long_t refused;	/* mappings that could never have been: too large, or not memory */
};

/* A virtio device whose DMA goes through its region. */
struct nodma_device {
	struct list_head link;
	struct virtio_device *vdev;
	struct pci_dev *pdev;
	struct nodma_share share;
	bool orphaned;				/* the owner of its pool is being removed */

	struct dma_map_ops dma_ops;		/* in place of what pdev had */
	const struct dma_map_ops *old_dma_ops;
	bool behind_iommu;			/* an IOMMU's operations came before those */
	struct virtio_config_ops config;	/* in place of what vdev had */
	const struct virtio_config_ops *old_config;

	struct mutex vqs_lock;			/* the virtqueues stay while it is held */
	bool live;				/* they are there, and DRIVER_OK was set */
	bool broken;
	u64 progress;				/* when last looked at */
	struct delayed_work watch;
};

/* profile.c */
extern const struct nodma_profile nodma_profiles[];
extern const unsigned int nodma_profile_count;

/* capability.c */
int nodma_claims_read(struct pci_dev *pdev, struct nodma_claims *claims);
u64 nodma_claim_end(const struct nodma_claim *claim);

/* region.c */
int nodma_region_find(struct pci_dev *pdev, u64 offered, struct nodma_region *region);

/* share.c */
struct nodma_pool *nodma_pool_get(struct pci_dev *pdev, u64 offered);
void nodma_pool_put(struct nodma_pool *pool, struct pci_dev *pdev);
int nodma_share_join(struct nodma_share *share, struct pci_dev *pdev, u64 offered);
void nodma_share_leave(struct nodma_share *share);
struct nodma_counters nodma_share_count(const struct nodma_share *share);

/* pool.c */
int nodma_pool_init(struct nodma_pool *pool);
void nodma_pool_exit(struct nodma_pool *pool);
dma_addr_t nodma_pool_map(struct nodma_share *share, void *origin, size_t size, enum dma_data_direction dir,
			  unsigned long attrs);
void nodma_pool_unmap(struct nodma_share *share, dma_addr_t address, size_t size, enum dma_data_direction dir,
		      unsigned long attrs);
void nodma_pool_sync(struct nodma_share *share, dma_addr_t address, size_t size, bool to_device);
void *nodma_pool_alloc(struct nodma_share *share, size_t size, dma_addr_t *address);
void nodma_pool_free(struct nodma_share *share, dma_addr_t address, size_t size);
size_t nodma_pool_max_mapping(const struct nodma_pool *pool);
bool nodma_pool_set_aside(struct nodma_pool *pool, unsigned int count, unsigned int *slot);
void nodma_pool_put_back(struct nodma_pool *pool, unsigned int slot, unsigned int count);

/* dma.c */
int nodma_dma_install(struct nodma_device *nodma);
void nodma_dma_restore(struct nodma_device *nodma);

/* iommu.c */
int nodma_iommu_bypass(struct nodma_device *nodma);
void nodma_iommu_restore(struct nodma_device *nodma);

/* features.c */
u64 nodma_features_offered(struct virtio_device *vdev);
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
