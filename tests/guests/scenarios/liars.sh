# Functions whose capabilities cannot be trusted, and among them some whose can: those are disks.
dmesg | grep 'no bouncing' >/out/refusals
for device in /sys/bus/virtio/devices/*; do
	test -d $device/nodma && basename "$(dirname "$(readlink -f $device)")" >>/out/attached
done
dmesg | grep -c 'device refuses features' >/out/refused
for disk in /sys/block/vd*; do
	dd if=/dev/${disk##*/} of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null || exit 1
	echo ${disk##*/} >>/out/disks
done
