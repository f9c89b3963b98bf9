// SPDX-License-Identifier: GPL-2.0
/*
 * The DMA API of the PCI function, answered from the pool. What kernels name differently is told apart
 * here and in config.c, and nowhere else.
 */
#include <linux/scatterlist.h>
#include <linux/version.h>

#include "nodma.h"

static struct nodma_pool_user *dma_user(struct device *dev)
{
	return &container_of(dev->dma_ops, struct nodma_device, dma_ops)->user;
}

static void *nodma_alloc(struct device *dev, size_t size, dma_addr_t *handle, gfp_t gfp, unsigned long attrs)
{
	return nodma_pool_alloc(dma_user(dev), size, handle);
}

static void nodma_free(struct device *dev, size_t size, void *memory, dma_addr_t handle, unsigned long attrs)
{
	nodma_pool_free(dma_user(dev), handle, size);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
static dma_addr_t nodma_map_phys(struct device *dev, phys_addr_t phys, size_t size, enum dma_data_direction dir,
				 unsigned long attrs)
{
	if (attrs & DMA_ATTR_MMIO || !pfn_valid(PHYS_PFN(phys))) {
		dev_dbg(dev, "nodma: %pap is not memory, and cannot be bounced\n", &phys);
		atomic_long_inc(&dma_user(dev)->refused);
		return DMA_MAPPING_ERROR;
	}
	return nodma_pool_map(dma_user(dev), phys_to_virt(phys), size, dir, attrs);
}
#else
static dma_addr_t nodma_map_page(struct device *dev, struct page *page, unsigned long offset, size_t size,
				 enum dma_data_direction dir, unsigned long attrs)
{
	return nodma_pool_map(dma_user(dev), page_address(page) + offset, size, dir, attrs);
}
#endif

static void nodma_unmap(struct device *dev, dma_addr_t handle, size_t size, enum dma_data_direction dir,
			unsigned long attrs)
{
	nodma_pool_unmap(dma_user(dev), handle, size, dir, attrs);
}

static void nodma_unmap_sg(struct device *dev, struct scatterlist *sgl, int nents, enum dma_data_direction dir,
			   unsigned long attrs)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(sgl, sg, nents, i)
		nodma_unmap(dev, sg_dma_address(sg), sg_dma_len(sg), dir, attrs);
}

static int nodma_map_sg(struct device *dev, struct scatterlist *sgl, int nents, enum dma_data_direction dir,
			unsigned long attrs)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(sgl, sg, nents, i) {
		sg->dma_address = nodma_pool_map(dma_user(dev), sg_virt(sg), sg->length, dir, attrs);
		if (sg->dma_address == DMA_MAPPING_ERROR) {
			nodma_unmap_sg(dev, sgl, i, dir, attrs | DMA_ATTR_SKIP_CPU_SYNC);
			return -ENOMEM;
		}
		sg_dma_len(sg) = sg->length;
	}
	return nents;
}

static void nodma_sync_for_cpu(struct device *dev, dma_addr_t handle, size_t size, enum dma_data_direction dir)
{
	if (dir != DMA_TO_DEVICE)
		nodma_pool_sync(dma_user(dev), handle, size, false);
}

static void nodma_sync_for_device(struct device *dev, dma_addr_t handle, size_t size, enum dma_data_direction dir)
{
	if (dir != DMA_FROM_DEVICE)
		nodma_pool_sync(dma_user(dev), handle, size, true);
}

static void nodma_sync_sg_for_cpu(struct device *dev, struct scatterlist *sgl, int nents, enum dma_data_direction dir)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(sgl, sg, nents, i)
		nodma_sync_for_cpu(dev, sg_dma_address(sg), sg_dma_len(sg), dir);
}

static void nodma_sync_sg_for_device(struct device *dev, struct scatterlist *sgl, int nents,
				     enum dma_data_direction dir)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(sgl, sg, nents, i)
		nodma_sync_for_device(dev, sg_dma_address(sg), sg_dma_len(sg), dir);
}

static int nodma_dma_supported(struct device *dev, u64 mask)
{
	const struct nodma_pool *pool = dma_user(dev)->pool;

	return pool->base + ((u64)pool->slots << NODMA_SLOT_SHIFT) - 1 <= mask;
}

static size_t nodma_max_mapping_size(struct device *dev)
{
	return nodma_pool_max_mapping(dma_user(dev)->pool);
}

static const struct dma_map_ops nodma_dma_ops = {
	.alloc = nodma_alloc,
	.free = nodma_free,
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
	.map_phys = nodma_map_phys,
	.unmap_phys = nodma_unmap,
#else
	.map_page = nodma_map_page,
	.unmap_page = nodma_unmap,
#endif
	.map_sg = nodma_map_sg,
	.unmap_sg = nodma_unmap_sg,
	.sync_single_for_cpu = nodma_sync_for_cpu,
	.sync_single_for_device = nodma_sync_for_device,
	.sync_sg_for_cpu = nodma_sync_sg_for_cpu,
	.sync_sg_for_device = nodma_sync_sg_for_device,
	.dma_supported = nodma_dma_supported,
	.max_mapping_size = nodma_max_mapping_size,
};

/**
 * nodma_dma_install() - have a PCI function's DMA go through the pool
 * @nodma: it has joined its pool
 *
 * Return: 0, or -EOPNOTSUPP where a virtual IOMMU cannot be bypassed, -EIO where the function cannot reach its region.
 */
int nodma_dma_install(struct nodma_device *nodma)
{
	struct device *dev = &nodma->pdev->dev;
	int error;

	error = nodma_iommu_bypass(nodma);
	if (error)
		return error;
	nodma->dma_ops = nodma_dma_ops;
	nodma->old_dma_ops = dev->dma_ops;
	set_dma_ops(dev, &nodma->dma_ops);
	/* Setting the mask makes the kernel work out anew whether synchronization can be left out. */
	if (dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64))) {
		nodma_dma_restore(nodma);
		return -EIO;
	}
	return 0;
}

void nodma_dma_restore(struct nodma_device *nodma)
{
	struct device *dev = &nodma->pdev->dev;

	set_dma_ops(dev, nodma->old_dma_ops);
	nodma_iommu_restore(nodma);
	if (dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64)))
		dma_set_mask_and_coherent(dev, DMA_BIT_MASK(32));
}
