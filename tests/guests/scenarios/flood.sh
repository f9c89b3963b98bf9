# A disk whose device sleeps is flooded at depth 128 until it has every slot that it can get; beside it is one that is used
# at depth 1. With a reservation that one does not notice; without, it gets none until the other wakes.
set -e
pci=/sys/bus/pci/devices
owner=0000:00:05.0
sharer=0000:00:05.1
of() { cat $pci/$1/virtio*/nodma/$2; }
ask() { echo "PLEASE $1" && read -r answer; }
keep() { mkdir -p /out/$1 && cp $pci/$owner/virtio*/nodma/* /out/$1 && mkdir /out/$1/sharer && cp $pci/$sharer/virtio*/nodma/* /out/$1/sharer; }

flood() {
	ask sleep
	fio --name=flood --filename=$(disk $owner) --ioengine=libaio --direct=1 --rw=randread --bs=4k --iodepth=128 --size=8m >/out/flood.txt 2>&1 &
	until [ "$(of $owner full)" -gt 0 ]; do :; done
}
single() {
	fio --name=single --filename=$(disk $sharer) --ioengine=libaio --direct=1 --rw=randread --bs=4k --iodepth=1 --number_ios=200 --size=8m >/out/single.txt 2>&1
}
wake() {
	ask wake
	cat $pci/$owner/virtio*/status >/dev/null # a message, which a device looks up from
	wait
}

flood
single
keep reserved
wake

for function in $owner $sharer; do basename $pci/$function/virtio* >/sys/bus/virtio/drivers/virtio_blk/unbind; done
rmmod nodma
insmod /job/drivers/nodma.ko reserve_kib=0
flood
single &
until [ "$(of $sharer full)" -gt 0 ]; do :; done
keep unreserved
wake
