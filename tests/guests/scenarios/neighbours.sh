# Two disks in one pool: the second alone, at depth 1; then beside the first, flooded at depth 128.
set -e
quiet() {
	fio --name=quiet --filename=/dev/vdb --ioengine=psync --direct=1 --rw=randread --bs=4k --size=64m \
		--runtime=4 --time_based --eta=never --output-format=json --output=/out/$1.json
}
count() {
	mkdir -p /out/$1
	cp /sys/bus/virtio/devices/$1/nodma/* /out/$1
}
quiet alone
fio --name=flood --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=128 --rw=randread --bs=64k --size=64m \
	--runtime=8 --time_based --eta=never --output-format=json --output=/out/flood.json &
until [ $(cat /sys/bus/virtio/devices/virtio0/nodma/full) -gt 0 ]; do :; done
quiet beside
count virtio0
count virtio1
wait
