# Hibernates under verified I/O, to a disk without DMA; in the next machine, the kernel that boots there puts the image
# back in its own place, and the I/O goes on.
set -e
. /job/load.sh
data=$(disk_of 0000:00:05.0)
swap=$(disk_of 0000:00:06.0)
if [ "$(dd if=/dev/$swap bs=1 skip=4086 count=10 2>/dev/null)" = S1SUSPEND ]; then
	echo "RESUMES"
	cat /sys/block/$swap/dev >/sys/power/resume
	echo "FAILED: the image was not put back"
	exit 1
fi
mkswap /dev/$swap >/dev/null
swapon /dev/$swap
idle=$(cat /sys/bus/pci/devices/0000:00:05.0/virtio*/nodma/used)
boot=$(cat /proc/sys/kernel/random/boot_id)
load_begin $data
load_moves
echo shutdown >/sys/power/disk
echo "HIBERNATES"
echo disk >/sys/power/state
echo "AWAKE"
[ "$(cat /proc/sys/kernel/random/boot_id)" = $boot ]
load_moves
load_end
swapoff /dev/$swap
check_slots 0000:00:05.0 $idle
