# Gives the function to another driver and back, three times, while the disk is written to.
set -e
. /job/load.sh
function=0000:00:05.0
pci=/sys/bus/pci/devices/$function
other=$(cat /job/driver)
records=0
unsafe=/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
[ ! -e $unsafe ] || echo Y >$unsafe
idle=$(cat $pci/virtio*/nodma/used)
for round in 0 1 2; do
	disk=$(disk_of $function)
	record $disk $records
	records=$((records + 1))
	noise_begin $disk
	echo $other >$pci/driver_override
	echo $function >/sys/bus/pci/drivers/virtio-pci/unbind
	wait
	rm /tmp/noise
	echo $function >/sys/bus/pci/drivers_probe
	[ "$(basename $(readlink $pci/driver))" = $other ]
	python3 /job/use_$other.py $function >>/out/used
	echo $function >/sys/bus/pci/drivers/$other/unbind
	echo >$pci/driver_override
	echo $function >/sys/bus/pci/drivers_probe
	disk=$(disk_of $function)
	[ "$(basename $(readlink $pci/virtio*/driver))" = virtio_blk ]
	check_records $disk $records
	check_slots $function $idle
	echo $round >>/out/handed
done
load_begin $disk
load_moves
load_end
check_slots $function $idle
