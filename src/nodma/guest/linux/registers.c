// SPDX-License-Identifier: GPL-2.0
/*
 * A function's registers. virtio_pci has them too, and waits without a bound for a reset to end, and calls it a bug of
 * the kernel's if the device says that its configuration is shorter than its driver reads. So both are done here.
 */
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/virtio_pci.h>

#include "nodma.h"

static unsigned int reset_ms = 5000;
module_param(reset_ms, uint, 0444);
MODULE_PARM_DESC(reset_ms, "How long a device may take to be reset, in milliseconds, before it is given up");

static void __iomem *registers_map_claim(struct pci_dev *pdev, const struct nodma_claim *claim)
{
	return claim ? pci_iomap_range(pdev, claim->bar, claim->offset, claim->length) : NULL;
}

/**
 * nodma_registers_map() - map a function's registers
 * @pdev: the function, enabled
 * @registers: filled
 *
 * Return: 0, -EINVAL if its capabilities do not describe them, -ENOMEM.
 */
int nodma_registers_map(struct pci_dev *pdev, struct nodma_registers *registers)
{
	const struct nodma_claim *common, *device;
	struct nodma_claims claims;

	if (nodma_claims_read(pdev, &claims))
		return -EINVAL;
	common = nodma_claim_of(pdev, &claims, VIRTIO_PCI_CAP_COMMON_CFG, sizeof(struct virtio_pci_common_cfg));
	device = nodma_claim_of(pdev, &claims, VIRTIO_PCI_CAP_DEVICE_CFG, 1);
	if (!common)
		return -EINVAL;
	registers->common = registers_map_claim(pdev, common);
	if (!registers->common)
		return -ENOMEM;
	registers->device = registers_map_claim(pdev, device);
	if (device && !registers->device) {
		pci_iounmap(pdev, registers->common);
		return -ENOMEM;
	}
	registers->device_length = registers->device ? min_t(u64, device->length, PAGE_SIZE) : 0;
	return 0;
}

void nodma_registers_unmap(struct pci_dev *pdev, struct nodma_registers *registers)
{
	if (registers->device)
		pci_iounmap(pdev, registers->device);
	if (registers->common)
		pci_iounmap(pdev, registers->common);
}

/**
 * nodma_registers_reset() - reset a device
 * @registers: its function's
 *
 * Return: 0, -ENODEV if nobody answers, -ETIMEDOUT if the reset does not end within reset_ms.
 */
int nodma_registers_reset(struct nodma_registers *registers)
{
	void __iomem *status = registers->common + offsetof(struct virtio_pci_common_cfg, device_status);
	ktime_t end = ktime_add_ms(ktime_get(), reset_ms);
	bool late = false;

	iowrite8(0, status);
	for (;;) {
		u8 told = ioread8(status);

		if (!told)
			return 0;
		if (told == NODMA_ALL_ONES)
			return -ENODEV;
		if (late)
			return -ETIMEDOUT;
		usleep_range(500, 1000);
		late = ktime_after(ktime_get(), end);
	}
}

/*
 * Read the device's configuration. Where the device says that there is none, it reads as zeros: a driver expects as much
 * of it as the features that were negotiated have, and the device may have lied of either.
 */
void nodma_registers_get(struct nodma_registers *registers, unsigned int offset, void *to, unsigned int length)
{
	void __iomem *from = registers->device + offset;
	unsigned int at;
	__le16 two;
	__le32 four;

	if (offset > registers->device_length || length > registers->device_length - offset) {
		memset(to, 0, length);
	} else if (length == sizeof(two) && IS_ALIGNED(offset, sizeof(two))) {
		two = cpu_to_le16(ioread16(from));
		memcpy(to, &two, sizeof(two));
	} else if (IS_ALIGNED(length | offset, sizeof(four))) {
		for (at = 0; at < length; at += sizeof(four)) {
			four = cpu_to_le32(ioread32(from + at));
			memcpy(to + at, &four, sizeof(four));
		}
	} else {
		for (at = 0; at < length; at++)
			*(u8 *)(to + at) = ioread8(from + at);
	}
}

void nodma_registers_set(struct nodma_registers *registers, unsigned int offset, const void *from, unsigned int length)
{
	void __iomem *to = registers->device + offset;
	unsigned int at;
	__le16 two;
	__le32 four;

	if (offset > registers->device_length || length > registers->device_length - offset)
		return;
	if (length == sizeof(two) && IS_ALIGNED(offset, sizeof(two))) {
		memcpy(&two, from, sizeof(two));
		iowrite16(le16_to_cpu(two), to);
	} else if (IS_ALIGNED(length | offset, sizeof(four))) {
		for (at = 0; at < length; at += sizeof(four)) {
			memcpy(&four, from + at, sizeof(four));
			iowrite32(le32_to_cpu(four), to + at);
		}
	} else {
		for (at = 0; at < length; at++)
			iowrite8(*(const u8 *)(from + at), to + at);
	}
}
