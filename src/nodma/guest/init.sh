#!/bin/busybox sh
# The first process of a guest: load /job/drivers in order, run /job/run, hand back its exit status and /out.
# The second serial port carries that back, as a tar archive.
/bin/busybox mkdir -p /bin /sbin /usr/bin /usr/sbin /proc /sys /dev /out /tmp /run /mnt
/bin/busybox --install -s /bin
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/ LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu/ceph
if ! [ -e /proc/mounts ]; then # a root file system on a disk finds them mounted
	mount -t proc proc /proc
	mount -t sysfs sysfs /sys
	mount -t devtmpfs devtmpfs /dev
	mkdir -p /dev/shm
	mount -t tmpfs tmpfs /dev/shm
fi

# For scripts: which disk a PCI function is now. Its name may change with every new binding, and it may take its time.
cat >/bin/disk <<'END'
#!/bin/sh
# disk [FUNCTION]: wait for the disk of a PCI function (0000:00:05.0, that of the first --disk), and print its device node.
function=${1:-0000:00:05.0}
tries=600
until name=$(ls /sys/bus/pci/devices/$function/virtio*/block 2>/dev/null) && [ -b "/dev/$name" ]; do
	tries=$((tries - 1))
	[ $tries -gt 0 ] || { echo "disk: PCI function $function had no disk for 60 s" >&2; exit 1; }
	usleep 100000
done
echo "/dev/$name"
END

# The kernel asks for what it needs by an alias, as in fs-ext4; /job/modules/index says which files that means.
cat >/sbin/modprobe <<'END'
#!/bin/sh
for wanted; do :; done
while read -r name files; do
	[ "$name" = "$wanted" ] || continue
	for file in $files; do insmod "/job/modules/$file" 2>/dev/null; done
	exit 0
done </job/modules/index
exit 1
END
chmod 755 /bin/disk /sbin/modprobe

while read -r driver options; do
	insmod "/job/drivers/$driver" $options || echo "init: $driver was not loaded"
done </job/order

cd /job || exit
if [ -e root ]; then
	mount -t ext4 "$(disk "$(cat root)")" /mnt || exec poweroff -f
	for place in proc sys dev; do mount --move /$place /mnt/$place; done
	cd /mnt
	exec switch_root /mnt /init
fi
if [ -e run ]; then
	sh /job/run </dev/console
	status=$?
	cd /
	echo $status >/out/status
	stty -F /dev/ttyS1 raw -echo
	{ echo NODMA-RESULTS; tar -c -C /out .; } >/dev/ttyS1 # a firmware may have used the port before
else
	echo "A guest's shell; 'poweroff -f' ends it."
	setsid cttyhack sh
fi
sync
# What is still mounted from a disk is left clean, the root file system too; last mounted, first unmounted.
sed -n 's,^/dev/[^ ]* \([^ ]*\) .*,\1,p' /proc/mounts | tac | while read -r place; do umount -r "$place"; done
poweroff -f
