# Two devices are gone, and one says that it is ready whatever is done with it. Each is let go of in another way, and then
# the module: nothing of it may be waiting to look at them. Meanwhile somebody reads what it counts.
drivers=/sys/bus/virtio/drivers/virtio_blk
ask() { echo "PLEASE $1" && read -r answer; }
read_disk() { dd if=/dev/$1 of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null; }
for disk in vda vdb vdc; do read_disk $disk || exit 1; done
touch /tmp/load
(while [ -e /tmp/load ]; do cat /sys/bus/virtio/devices/*/nodma/*; done) >/dev/null 2>&1 &
ask die
for disk in vda vdb vdc; do read_disk $disk && echo $disk >>/out/disks; done
echo 1 >/sys/bus/pci/devices/0000:00:05.0/remove
echo virtio1 >$drivers/unbind
echo virtio2 >$drivers/unbind
rmmod nodma || exit 1
rm /tmp/load
wait
sleep 1
dmesg | grep nodma >/out/dmesg
