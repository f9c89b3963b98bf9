/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Restricted DMA for virtio-pci: every ring, indirect table and buffer of a device goes through a region
 * in one of its own BARs, so that it never does DMA to system memory.
 *
 * The device is not trusted. What it says is checked once, where it enters; what it can write - its configuration, its
 * registers, the region - decides nothing that the kernel's own tables can decide.
 */
#ifndef NODMA_H
#define NODMA_H

#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/device.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/workqueue.h>

#if !defined(CONFIG_ARCH_HAS_DMA_OPS) && !defined(CONFIG_DMA_OPS)
#error "This kernel has no per-device DMA operations (CONFIG_ARCH_HAS_DMA_OPS, CONFIG_DMA_OPS); nodma replaces those."
#endif
#ifdef CONFIG_HIGHMEM
#error "This kernel has memory without a kernel address (CONFIG_HIGHMEM), which nodma cannot copy from or to."
#endif

/* The numbers of profile swiotlb (RFC of 2 April 2025), each once. */
#define NODMA_F_SWIOTLB			27	/* the feature: addresses lie in the region */
#define NODMA_PCI_CAP_SWIOTLB		10	/* cfg_type of the capability that describes the region */
#define NODMA_PCI_CAP_LENGTH		16	/* bytes; 20 if it can name another function's BAR */
#define NODMA_PCI_CAP_SHARED_LENGTH	20
#define NODMA_PCI_CAP_DEVICE		16	/* offsets of the bytes that the longer form adds */
#define NODMA_PCI_CAP_FUNCTION		17
#define NODMA_PCI_CAP_SELF		0xff

/* Those of profile dmb (virtio-spec issue 248). PROVISIONAL: the proposal has assigned none. */
#define NODMA_F_DMB			42	/* the feature: addresses are offsets from the region's start */
#define NODMA_COMMON_DMB_SHM_ID		64	/* offset in the common configuration, after admin_queue_num; le16 */
#define NODMA_DMB_SHM_ID_MASK		0xff	/* as many of its bits as an id in a capability has */

#define NODMA_SLOT_SHIFT		11	/* bounce slots of 2 KiB, as SWIOTLB's */
#define NODMA_SLOT_SIZE			(1UL << NODMA_SLOT_SHIFT)
#define NODMA_RING_ALIGN		SZ_4K	/* the alignment of coherent memory */
#define NODMA_RING_SLOTS		(NODMA_RING_ALIGN / NODMA_SLOT_SIZE)
#define NODMA_ALL_ONES			0xff	/* what a byte reads where nobody answers */
#define NODMA_REGION_MIN		(64UL << 10)	/* bytes; less holds no useful ring and buffers */
#define NODMA_POOL_MAX_MIB		4096U	/* of a region, at most so much is used: slots are counted in 32 bits */
#define NODMA_CLAIMS_MAX		12	/* a PCI function's configuration space has room for no more */
#define NODMA_USERS_MAX			256	/* as many functions as a bus has; 0 stands for nobody */

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

/* A function's registers, mapped by us: the reset is ours to bound, and the device's configuration to check. */
struct nodma_registers {
	void __iomem *common;
	void __iomem *device;	/* NULL if it has none */
	u32 device_length;	/* bytes */
};

struct nodma_region;

/* A way to restrict DMA, as it was proposed. profile.c says all that differs. */
struct nodma_profile {
	const char *name;
	unsigned int feature;
	u64 needs;		/* features without which it is not accepted */
	bool by_feature;	/* the feature says that the device has it; otherwise the capability does */
	bool shares;		/* the capability can name another function's BAR */
	u8 cfg_type;		/* of the capability that describes the region */
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

/*
 * What a slot holds. Every slot of a mapping has one, so that a part of it can be synchronized. Whoever changes the
 * first one's state from what a mapping has (see pool.c) owns the mapping's end: nobody else unmaps it.
 */
struct nodma_slot {
	void *origin;		/* the memory bounced, where this slot begins; NULL for coherent memory */
	u32 left;		/* bytes of the mapping from here to its end */
	u32 state;		/* 0: free. Else whose it is, what it is, and in which direction */
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
	DECLARE_BITMAP(ids, NODMA_USERS_MAX);	/* of users, taken */
	u8 reset_methods[PCI_NUM_RESET_METHODS];	/* the owner's, kept while there are borrowers */
	struct nodma_region region;
	bool claimed;		/* the BAR, by us, with pci_request_region() */
	void *memory;
	const char *memory_type;	/* what the mapping became, in words */
	u64 size;		/* bytes of the region that are used */
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
struct nodma_pool_user {
	struct nodma_pool *pool;
	struct device *dev;	/* the PCI function, for the log */
	u8 id;			/* in the pool's slots; never 0 */
	struct nodma_area own;	/* its reservation: slots that are nobody else's; 0 where it has none */
	bool dead;		/* the device was given up: nothing is mapped any more, and nothing copied from it */
	struct nodma_counters __percpu *counters;
	struct nodma_usage usage ____cacheline_aligned_in_smp;
	atomic_long_t full;	/* mappings that found no room */
	atomic_long_t refused;	/* mappings that could never have been: too large, or not memory */
	atomic_long_t wrong;	/* unmappings of what was not mapped: the device has changed its descriptors */
};

/* A virtqueue's descriptor table: the one in the region, which the device can write, and one of our own. */
struct nodma_ring {
	struct virtqueue *vq;
	struct vring *vring;		/* virtio's own idea of where the ring is */
	struct vring_desc *shared;
	struct vring_desc *kept;
	bool settled;
};

/* A virtio device whose DMA goes through its region: from before its driver's probe until after its remove. */
struct nodma_device {
	struct list_head link;
	struct virtio_device *vdev;
	struct pci_dev *pdev;
	struct nodma_pool_user user;
	struct nodma_registers registers;
	int refusal;				/* its driver's probe is to fail with this error */

	struct dma_map_ops dma_ops;		/* in place of what pdev had */
	const struct dma_map_ops *old_dma_ops;
	bool behind_iommu;			/* an IOMMU's operations came before those */
	struct virtio_config_ops config;	/* in place of what vdev had */
	const struct virtio_config_ops *old_config;

	u8 status;				/* as the driver wrote it; the device's word is only its part of that */
	bool stuck;				/* the last reset did not end */
	u32 generation;				/* of the configuration, as last read */
	unsigned int generations;		/* how often in a row it was another one */

	spinlock_t rings_lock;
	struct nodma_ring *ring;		/* of split virtqueues; packed ones need none */
	unsigned int rings;

	struct device *disk;			/* of a block device that is losing its driver; a reference is held */

	struct mutex vqs_lock;			/* the virtqueues stay while it is held */
	bool live;				/* they are there, and DRIVER_OK was set */
	bool broken;
	bool tampered;				/* what its driver unmaps shows that the device writes its descriptors */
	unsigned long probing;			/* jiffies since when its driver's probe runs; 0: it does not */
	unsigned long leaving;			/* since when its driver is being unbound */
	unsigned long stalled;			/* since when nothing came back, and something should */
	u64 progress;				/* when last looked at */
	struct delayed_work watch;
};

/* profile.c */
extern const struct nodma_profile nodma_profiles[];
extern const unsigned int nodma_profile_count;

/* capability.c */
int nodma_claims_read(struct pci_dev *pdev, struct nodma_claims *claims);
u64 nodma_claim_end(const struct nodma_claim *claim);
const struct nodma_claim *nodma_claim_of(struct pci_dev *pdev, const struct nodma_claims *claims, u8 type, u64 length);

/* registers.c */
int nodma_registers_map(struct pci_dev *pdev, struct nodma_registers *registers);
void nodma_registers_unmap(struct pci_dev *pdev, struct nodma_registers *registers);
int nodma_registers_reset(struct nodma_registers *registers);
void nodma_registers_get(struct nodma_registers *registers, unsigned int offset, void *to, unsigned int length);
void nodma_registers_set(struct nodma_registers *registers, unsigned int offset, const void *from, unsigned int length);

/* region.c */
int nodma_region_find(struct pci_dev *pdev, u64 offered, struct nodma_region *region);

/* pool_user.c */
struct nodma_pool *nodma_pool_get(struct pci_dev *pdev, u64 offered);
void nodma_pool_put(struct nodma_pool *pool, struct pci_dev *pdev);
int nodma_pool_user_join(struct nodma_pool_user *user, struct pci_dev *pdev, u64 offered);
void nodma_pool_user_leave(struct nodma_pool_user *user);
struct nodma_counters nodma_pool_user_count(const struct nodma_pool_user *user);

/* memory.c */
void *nodma_memory_map(struct device *dev, phys_addr_t start, size_t size, const char **type);
void nodma_memory_unmap(void *memory);

/* pool.c */
int nodma_pool_init(struct nodma_pool *pool);
void nodma_pool_exit(struct nodma_pool *pool);
dma_addr_t nodma_pool_map(struct nodma_pool_user *user, void *origin, size_t size, enum dma_data_direction dir,
			  unsigned long attrs);
void nodma_pool_unmap(struct nodma_pool_user *user, dma_addr_t address, size_t size, enum dma_data_direction dir,
		      unsigned long attrs);
void nodma_pool_sync(struct nodma_pool_user *user, dma_addr_t address, size_t size, bool to_device);
void *nodma_pool_alloc(struct nodma_pool_user *user, size_t size, dma_addr_t *address);
void nodma_pool_free(struct nodma_pool_user *user, dma_addr_t address, size_t size);
size_t nodma_pool_max_mapping(const struct nodma_pool *pool);
bool nodma_pool_set_aside(struct nodma_pool *pool, unsigned int count, unsigned int *slot);
void nodma_pool_put_back(struct nodma_pool *pool, unsigned int slot, unsigned int count);
void nodma_pool_abandon(struct nodma_pool_user *user);
unsigned int nodma_pool_sweep(struct nodma_pool_user *user);

/* dma.c */
int nodma_dma_install(struct nodma_device *nodma);
void nodma_dma_restore(struct nodma_device *nodma);

/* iommu.c */
int nodma_iommu_bypass(struct nodma_device *nodma);
void nodma_iommu_restore(struct nodma_device *nodma);

/* config.c */
u64 nodma_features_offered(struct virtio_device *vdev);
void nodma_config_install(struct nodma_device *nodma);
void nodma_config_restore(struct nodma_device *nodma);
int nodma_config_reset(struct nodma_device *nodma);

/* rings.c */
int nodma_rings_init(void);
int nodma_rings_make(struct nodma_device *nodma);
void nodma_rings_cut(struct nodma_device *nodma);
void nodma_rings_settle(struct nodma_device *nodma);
bool nodma_rings_broken(struct nodma_device *nodma);
void nodma_rings_drain(struct nodma_device *nodma);
void nodma_rings_free(struct nodma_device *nodma);

/* disk.c */
struct device *nodma_disk_get(struct virtio_device *vdev);
unsigned int nodma_disk_end_requests(struct device *disk);

/* watch.c */
int nodma_watch_init(void);
void nodma_watch_exit(void);
void nodma_watch_prepare(struct nodma_device *nodma);
void nodma_watch_leaving(struct nodma_device *nodma);
void nodma_watch_start(struct nodma_device *nodma);
void nodma_watch_stop(struct nodma_device *nodma);
void nodma_watch_tampered(struct nodma_pool_user *user);

/* stats.c */
extern const struct attribute_group nodma_stats_group;

static inline struct nodma_device *nodma_of_virtio(struct virtio_device *vdev)
{
	return container_of(vdev->config, struct nodma_device, config);
}

#endif
