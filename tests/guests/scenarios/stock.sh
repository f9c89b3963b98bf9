# A kernel that knows nothing of restricted DMA. Its root file system is another disk.
grep ' / ext4' /proc/mounts >/out/root
ls /sys/block | grep vd >/out/disks
dmesg | grep 'virtio_blk' >/out/dmesg
for device in /sys/bus/virtio/devices/*; do
	echo "$(basename $device) $(cat $device/status) $(basename "$(readlink $device/driver)")" >>/out/devices
done
