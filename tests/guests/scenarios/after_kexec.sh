# The kernel that was started by another one: all that was flushed is there, and the disk works as ever.
set -e
. /job/load.sh
disk=$(disk_of 0000:00:05.0)
check_records $disk 8
uname -r >/out/release
grep -q nodma /proc/modules
if [ -e /proc/vmcore ]; then
	dd if=/proc/vmcore bs=1 skip=1 count=3 of=/out/magic 2>/dev/null
	stat -c %s /proc/vmcore >/out/vmcore
	dd if=/proc/vmcore of=/dev/$disk bs=64k seek=1024 count=256 oflag=direct 2>/dev/null
	dd if=/proc/vmcore bs=64k count=256 2>/dev/null | sha256sum >/out/dumped
	dd if=/dev/$disk bs=64k skip=1024 count=256 iflag=direct 2>/dev/null | sha256sum >/out/stored
else
	load_begin $disk
	load_moves
	load_end
fi
cp /sys/bus/pci/devices/0000:00:05.0/virtio*/nodma/maps /out/maps
