// SPDX-License-Identifier: GPL-2.0
/*
 * A guest that has a virtual IOMMU. The pool's addresses lie on the device (SW-P1), so nothing needs translating, and the
 * module's DMA operations come before the IOMMU's. The function stays in its translated domain, with nothing mapped
 * there: a device that does DMA all the same reaches no memory.
 *
 * Up to Linux 6.11 the IOMMU's operations were the device's DMA operations, and replacing those suffices. Since 6.12 the
 * DMA API looks at a flag of the device first, and while that is set never at the device's operations.
 */
#include <linux/version.h>

#include "nodma.h"

#if defined(CONFIG_IOMMU_DMA) && LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#include <linux/iommu-dma.h>

static bool iommu_flag(struct device *dev)
{
	return use_dma_iommu(dev);
}

/* Kbuild looks up in the kernel's headers which of the two it has. With neither, the flag stays as it is. */
static void iommu_set_flag(struct device *dev, bool value)
{
#if defined(NODMA_IOMMU_FLAG_ACCESSOR)
	dev_assign_dma_iommu(dev, value);
#elif defined(NODMA_IOMMU_FLAG_FIELD)
	dev->dma_iommu = value;
#endif
}
#else
static bool iommu_flag(struct device *dev)
{
	return false;
}

static void iommu_set_flag(struct device *dev, bool value)
{
}
#endif

/**
 * nodma_iommu_bypass() - have a function's DMA operations come before a virtual IOMMU's
 * @nodma: its operations are not installed yet
 *
 * Return: 0, or -EOPNOTSUPP where this kernel offers no way; the log says so.
 */
int nodma_iommu_bypass(struct nodma_device *nodma)
{
	struct device *dev = &nodma->pdev->dev;

	nodma->behind_iommu = iommu_flag(dev);
	if (!nodma->behind_iommu)
		return 0;
	iommu_set_flag(dev, false);
	if (iommu_flag(dev)) {
		dev_warn(dev, "nodma: no bouncing: this kernel maps through its IOMMU first, and its headers did not say how to turn that off\n");
		return -EOPNOTSUPP;
	}
	return 0;
}

/* Undo it; the function has its own operations again. */
void nodma_iommu_restore(struct nodma_device *nodma)
{
	if (nodma->behind_iommu)
		iommu_set_flag(&nodma->pdev->dev, true);
}
