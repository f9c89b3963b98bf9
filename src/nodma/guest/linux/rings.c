// SPDX-License-Identifier: GPL-2.0
/*
 * Split virtqueues on their way out. virtio_ring keeps what it needs to know of a descriptor in memory of its own, with
 * one exception, on all kernels looked at: whether a chain goes on, it reads from the descriptor table, which the device
 * can write. A driver that takes back its buffers follows that; with other flags than it wrote it follows chains
 * into each other, or in a circle, and in the end the kernel finds a bug of its own (BUG_ON of the number of free
 * descriptors).
 *
 * So from the moment that the device is reset, or given up, virtio_ring gets another descriptor table: one of ours, with
 * the flags that are in its own memory. Where that memory does not add up either - the device did this before it was
 * found out - each buffer is taken back here, and lost to its driver.
 *
 * Packed virtqueues need nothing of the kind: there virtio_ring follows its own memory only.
 */
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <uapi/linux/virtio_config.h>
#include <xen/xen.h>

#include "nodma.h"

/*
 * What virtio_ring keeps of a split virtqueue. virtqueue_get_vring() gives out the first field of it; the rest was like
 * this in all kernels since 5.14, and rings_check_layout() tries it out before any device is taken on.
 */
struct rings_extra {
	dma_addr_t addr;
	u32 len;
	u16 flags;
	u16 next;
};

struct rings_split {
	struct vring vring;
	u16 avail_flags;
	u16 avail_index;
	void *state;		/* of each descriptor: a struct rings_state, and what newer kernels add */
	struct rings_extra *extra;
};

struct rings_state {
	void *data;		/* what the driver gave; NULL: no buffer begins here */
	void *indirect;
};

static size_t rings_state_size;	/* bytes from one descriptor's state to the next */

static struct rings_state *rings_state_of(const struct rings_split *split, unsigned int at)
{
	return split->state + at * rings_state_size;
}

static const struct rings_split *rings_split_of(const struct vring *vring)
{
	return container_of(vring, struct rings_split, vring);
}

/* Try what virtio_ring does of a virtqueue that we make against what we believe it to do. */
static bool rings_layout_is_known(struct virtqueue *vq, struct vring_desc *table, void *buffers[3])
{
	const struct rings_split *split = rings_split_of(virtqueue_get_vring(vq));
	struct scatterlist sg[2];
	struct scatterlist *both[2] = { &sg[0], &sg[1] };
	unsigned int i;

	if (split->vring.num != 4 || split->vring.desc != table)
		return false;
	for (i = 0; i < 2; i++) {
		sg_init_one(&sg[0], buffers[i], 16 << i);
		if (virtqueue_add_outbuf(vq, &sg[0], 1, buffers[i], GFP_KERNEL))
			return false;
	}
	sg_init_one(&sg[0], buffers[2], 8);
	sg_init_one(&sg[1], buffers[2] + 8, 8);
	if (virtqueue_add_sgs(vq, both, 1, 1, buffers[2], GFP_KERNEL))
		return false;
	if (split->avail_index != 3 || !virt_addr_valid(split->state) || !virt_addr_valid(split->extra))
		return false;
	for (i = 0; i < 2; i++)
		if (split->extra[i].len != 16 << i || split->extra[i].addr != virt_to_phys(buffers[i]))
			return false;
	if (!(split->extra[2].flags & VRING_DESC_F_NEXT) || split->extra[2].next != 3 ||
	    !(split->extra[3].flags & VRING_DESC_F_WRITE))
		return false;
	for (rings_state_size = sizeof(struct rings_state); rings_state_size <= 4 * sizeof(struct rings_state);
	     rings_state_size += sizeof(void *)) {
		for (i = 0; i < 3; i++)
			if (rings_state_of(split, i)->data != buffers[i])
				break;
		if (i == 3)
			return true;
	}
	return false;
}

static bool rings_notify(struct virtqueue *vq)
{
	return true;
}

/**
 * nodma_rings_init() - find out how this kernel's virtio_ring keeps its descriptors
 *
 * Return: 0, -EOPNOTSUPP if it is another way than is known here, -ENOMEM.
 */
int nodma_rings_init(void)
{
	struct virtio_device *vdev;
	struct vring_desc *table;
	struct virtqueue *vq = NULL;
	void *buffers[3];
	int error = -ENOMEM;

	if (xen_domain()) {
		pr_err("nodma: not made for Xen, where virtio's addresses are Xen's own\n");
		return -EOPNOTSUPP;
	}
	vdev = kzalloc(sizeof(*vdev), GFP_KERNEL);
	table = (void *)get_zeroed_page(GFP_KERNEL);
	buffers[0] = kzalloc(3 * 64, GFP_KERNEL);
	if (!vdev || !table || !buffers[0])
		goto free;
	buffers[1] = buffers[0] + 64;
	buffers[2] = buffers[0] + 2 * 64;
	INIT_LIST_HEAD(&vdev->vqs);
	spin_lock_init(&vdev->vqs_list_lock);
	vq = vring_new_virtqueue(0, 4, SMP_CACHE_BYTES, vdev, true, false, table, rings_notify, NULL, "nodma");
	if (!vq)
		goto free;
	error = 0;
	if (!rings_layout_is_known(vq, table, buffers)) {
		pr_err("nodma: this kernel keeps its virtqueues in a way that this module does not know: not loaded\n");
		error = -EOPNOTSUPP;
	}
	while (virtqueue_detach_unused_buf(vq))
		;
	vring_del_virtqueue(vq);
free:
	kfree(buffers[0]);
	free_page((unsigned long)table);
	kfree(vdev);
	return error;
}

/* A device's virtqueues were just made. */
int nodma_rings_make(struct nodma_device *nodma)
{
	struct virtio_device *vdev = nodma->vdev;
	unsigned int count = 0, made = 0;
	struct nodma_ring *ring = NULL;
	struct virtqueue *vq;

	if (!__virtio_test_bit(vdev, VIRTIO_F_RING_PACKED))
		virtio_device_for_each_vq(vdev, vq)
			count++;
	if (count) {
		ring = kcalloc(count, sizeof(*ring), GFP_KERNEL);
		if (!ring)
			return -ENOMEM;
		virtio_device_for_each_vq(vdev, vq) {
			struct vring *vring = (struct vring *)virtqueue_get_vring(vq);

			ring[made] = (struct nodma_ring){
				.vq = vq,
				.vring = vring,
				.shared = vring->desc,
				.kept = kvcalloc(vring->num, sizeof(*vring->desc), GFP_KERNEL),
			};
			if (!ring[made++].kept)
				goto free;
		}
	}
	/* What a driver left behind when its device was given up, before it began anew. */
	nodma_pool_sweep(&nodma->user);
	WRITE_ONCE(nodma->user.dead, false);
	spin_lock_irq(&nodma->rings_lock);
	nodma->ring = ring;
	nodma->rings = made;
	spin_unlock_irq(&nodma->rings_lock);
	return 0;

free:
	while (made--)
		kvfree(ring[made].kept);
	kfree(ring);
	return -ENOMEM;
}

/**
 * nodma_rings_cut() - take the virtqueues away from the device, and from whoever is using them
 * @nodma: the device
 *
 * From any context. Who follows a chain at this moment is at its end: our table, empty as yet, has no flags.
 */
void nodma_rings_cut(struct nodma_device *nodma)
{
	unsigned long flags;
	unsigned int i;

	spin_lock_irqsave(&nodma->rings_lock, flags);
	for (i = 0; i < nodma->rings; i++) {
		struct nodma_ring *ring = &nodma->ring[i];

		__virtqueue_break(ring->vq);
		WRITE_ONCE(ring->vring->desc, ring->kept);
	}
	spin_unlock_irqrestore(&nodma->rings_lock, flags);
}

/*
 * Where a buffer has an indirect table, virtio_ring insists that its descriptor says so. Without, this is a driver's
 * context, which nobody asks for any more, or a table whose descriptor became another one's.
 */
static void rings_forget_tables(struct nodma_ring *ring)
{
	const struct rings_split *split = rings_split_of(ring->vring);
	unsigned int at;

	for (at = 0; at < ring->vring->num; at++)
		if (!(split->extra[at].flags & VRING_DESC_F_INDIRECT))
			rings_state_of(split, at)->indirect = NULL;
}

/* Write the flags that virtio_ring keeps into our table. Return whether all that it keeps adds up. */
static bool rings_take_flags(struct nodma_ring *ring)
{
	const struct rings_split *split = rings_split_of(ring->vring);
	unsigned int num = ring->vring->num, seen = 0, head, at;

	memset(ring->kept, 0, num * sizeof(*ring->kept));
	for (head = 0; head < num; head++) {
		if (!rings_state_of(split, head)->data)
			continue;
		for (at = head;; at = split->extra[at].next) {
			if (at >= num || seen++ >= num)
				return false;
			if (!(split->extra[at].flags & VRING_DESC_F_NEXT))
				break;
			ring->kept[at].flags = (__force __virtio16)cpu_to_le16(VRING_DESC_F_NEXT);
		}
	}
	return seen + ring->vq->num_free == num;
}

/* Take back all buffers, as single descriptors, whatever the number of free ones is. */
static void rings_take_back(struct nodma_ring *ring)
{
	unsigned int num = ring->vring->num, lost = 0;

	memset(ring->kept, 0, num * sizeof(*ring->kept));
	for (;;) {
		ring->vq->num_free = num;
		if (!virtqueue_detach_unused_buf(ring->vq))
			break;
		lost++;
	}
	if (lost)
		dev_err(&ring->vq->vdev->dev, "nodma: %s: the device had changed its descriptors: %u buffers are lost\n",
			ring->vq->name, lost);
}

/**
 * nodma_rings_settle() - make sure that a driver can take back its buffers
 * @nodma: the device, whose virtqueues are cut; nobody is at them
 */
void nodma_rings_settle(struct nodma_device *nodma)
{
	unsigned int i;

	for (i = 0; i < nodma->rings; i++) {
		struct nodma_ring *ring = &nodma->ring[i];

		if (ring->settled)
			continue;
		ring->settled = true;
		rings_forget_tables(ring);
		if (!rings_take_flags(ring))
			rings_take_back(ring);
	}
}

/* Whether virtio itself found that the device gave back what it was not given. */
bool nodma_rings_broken(struct nodma_device *nodma)
{
	struct virtqueue *vq;

	virtio_device_for_each_vq(nodma->vdev, vq)
		if (virtqueue_is_broken(vq))
			return true;
	return false;
}

/* Take back all that the virtqueues hold, when their driver has been told otherwise that it is lost. */
void nodma_rings_drain(struct nodma_device *nodma)
{
	struct virtqueue *vq;

	virtio_device_for_each_vq(nodma->vdev, vq)
		while (virtqueue_detach_unused_buf(vq))
			;
}

/* The virtqueues are about to go, and virtio_ring is to free what it allocated. */
void nodma_rings_free(struct nodma_device *nodma)
{
	struct nodma_ring *ring;
	unsigned int rings, i;

	nodma_rings_cut(nodma);
	spin_lock_irq(&nodma->rings_lock);
	ring = nodma->ring;
	rings = nodma->rings;
	nodma->ring = NULL;
	nodma->rings = 0;
	for (i = 0; i < rings; i++)
		WRITE_ONCE(ring[i].vring->desc, ring[i].shared);
	spin_unlock_irq(&nodma->rings_lock);
	for (i = 0; i < rings; i++)
		kvfree(ring[i].kept);
	kfree(ring);
}
