# Reads at the depth and size that /job/load says; the module's count of slots at their most.
set -e
. /job/load
fio --name=load --filename=/dev/vda --ioengine=libaio --direct=1 --rw=randread --iodepth=$depth --bs=$size \
	--numjobs=$jobs --size=32m --runtime=3 --time_based --group_reporting --eta=never --output-format=json --output=/out/fio.json
cat /sys/bus/virtio/devices/virtio0/nodma/peak >/out/peak
cat /sys/bus/virtio/devices/virtio0/nodma/full >/out/full
