# Fails each allocation of a probe in its turn; afterwards the function works as ever, and nothing was left behind.
set -e
. /job/load.sh
function=0000:00:05.0
pci=/sys/bus/pci/devices/$function
debug=/sys/kernel/debug
mount -t debugfs debugfs $debug
for kind in failslab fail_page_alloc; do
	echo N >$debug/$kind/ignore-gfp-wait
	echo 0 >$debug/$kind/verbose
done
echo 0 >$debug/fail_page_alloc/min-order
idle=$(cat $pci/virtio*/nodma/used)
python3 /job/fail_probe.py >/out/points
[ -d /sys/module/nodma ] || insmod /job/drivers/nodma.ko
[ -e $pci/driver ] || echo $function >/sys/bus/pci/drivers/virtio-pci/bind
device=$(basename $pci/virtio*)
[ -e $pci/$device/driver ] || echo $device >/sys/bus/virtio/drivers/virtio_blk/bind
load_begin $(disk_of $function)
load_moves
load_end
check_slots $function $idle
echo scan >$debug/kmemleak
sleep 6 # it looks only at what is older than 5 s
echo scan >$debug/kmemleak
cat $debug/kmemleak >/out/leaks
