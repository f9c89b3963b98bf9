# Two devices write over their descriptors, under I/O; their drivers let go of them, and a third disk goes on.
ask() { echo "PLEASE $1" && read -r answer; }
load() { while [ -e /tmp/load ] && dd if=/dev/$1 of=/dev/null bs=$2 count=64 iflag=direct; do :; done 2>/dev/null; }
touch /tmp/load
for disk in vda vdb vdc; do
	load $disk 4k &
	load $disk 256k &
done
ask tamper
sleep 5
rm /tmp/load
for number in 0 1; do
	disk=$(ls /sys/bus/virtio/devices/virtio$number/block)
	echo virtio$number >/sys/bus/virtio/drivers/virtio_blk/unbind
	[ -e /dev/$disk ] || echo $disk >>/out/unbound
done
wait
dd if=/dev/urandom of=/dev/vdc bs=64k count=64 oflag=direct 2>/dev/null
sync
dd if=/dev/vdc of=/dev/null bs=64k iflag=direct 2>/dev/null
echo $? >/out/honest
dmesg | grep nodma >/out/dmesg
