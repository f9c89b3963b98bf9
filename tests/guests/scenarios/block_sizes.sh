# A disk on a block device with sectors of 4096 bytes: discard and zeroes of any sector, its cache switched, its size grown.
set -e
disk=$(disk)
queue=/sys/block/$(basename $disk)
cat $queue/queue/physical_block_size $queue/queue/logical_block_size $queue/queue/minimum_io_size >/out/sizes
cat $queue/serial >/out/serial

mkfs.ext4 -q -F -b 1024 $disk 40000
mount -t ext4 -o discard $disk /mnt
dd if=/dev/zero of=/mnt/file bs=1k count=33 2>/dev/null
sync
rm /mnt/file
sync
fstrim /mnt
umount /mnt

tr '\0' x </dev/zero | dd of=$disk bs=4k count=16 conv=notrunc iflag=fullblock 2>/dev/null
sync
echo 3 >/proc/sys/vm/drop_caches
# BLKZEROOUT (linux/fs.h): busybox's blkdiscard has no -z
zero() { python3 -c "import fcntl, os, struct; fcntl.ioctl(os.open('$disk', os.O_RDWR), 0x127f, struct.pack('QQ', $1, $2))"; }
zero 512 1024
zero 5120 8192
blkdiscard -o 20480 -l 512 $disk
dd if=$disk bs=512 count=128 2>/dev/null >/out/data

cat $queue/cache_type >/out/cache
echo "write through" >$queue/cache_type
cat $queue/cache_type >>/out/cache
dd if=/dev/zero of=$disk bs=4k seek=1000 count=8 oflag=direct conv=notrunc 2>/dev/null
echo "write back" >$queue/cache_type
cat $queue/cache_type >>/out/cache

before=$(cat $queue/size)
echo "PLEASE grow"
for second in $(seq 120); do
	[ $(cat $queue/size) != $before ] && break
	sleep 1
done
cat $queue/size >/out/grown
dd if=/dev/zero of=$disk bs=512 seek=$((before + 1)) count=1 oflag=direct conv=notrunc
dmesg | grep "I/O error" >/out/errors || true
