# Reads at the depth and size that /job/load says; the module's count of slots at their most.
set -e
device=/sys/bus/pci/devices/0000:00:05.0
. /job/load
fio --name=load --filename=$(disk) --ioengine=libaio --direct=1 --rw=randread --iodepth=$depth --bs=$size \
	--numjobs=$jobs --size=32m --runtime=3 --time_based --group_reporting --eta=never --output-format=json --output=/out/fio.json
cat $device/virtio*/nodma/peak >/out/peak
cat $device/virtio*/nodma/full >/out/full
