# Takes processors away and brings them back under verified I/O, in as many queues as there are processors.
set -e
. /job/load.sh
function=0000:00:05.0
disk=$(disk_of $function)
idle=$(cat /sys/bus/pci/devices/$function/virtio*/nodma/used)
switch() { # PROCESSOR 0|1
	echo $2 >/sys/devices/system/cpu/cpu$1/online
	[ "$(cat /sys/devices/system/cpu/cpu$1/online)" = $2 ]
	load_moves
	echo "$1 $2" >>/out/switched
}
load_begin $disk
load_moves
for round in 0 1 2; do
	for processor in 1 2 3; do switch $processor 0; done # the last one serves all queues
	for processor in 3 1 2; do switch $processor 1; done
done
load_end
check_slots $function $idle
