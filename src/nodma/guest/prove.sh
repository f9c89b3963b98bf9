# Fill memory with the canary, free half of it, use the disk with what was freed, and wait to be inspected.
set -e
mount -t tmpfs -o size=100% tmpfs /mnt
block=/mnt/block
for copy in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
	cat /job/canary
done >$block
for doubling in 1 2 3 4 5 6 7 8 9 10; do
	cat $block $block >/mnt/twice
	mv /mnt/twice $block
done
mkdir /mnt/kept /mnt/freed
read -r x free unit <<END
$(grep MemAvailable /proc/meminfo)
END
filled=0
number=0
size=$(stat -c %s $block)
while [ $((filled + 2 * size)) -lt $((free * 1024 * 7 / 10)) ]; do
	cp $block /mnt/kept/$number
	cp $block /mnt/freed/$number
	number=$((number + 1))
	filled=$((filled + 2 * size))
done
echo "FILLED $filled"
rm -r /mnt/freed
# The kernel does not clear pages that it allocates (init_on_alloc=0): reads go to pages that hold the canary.
disk=$(disk)
cat $disk >/dev/null
for size in 512 4096 65536 1048576; do
	dd if=$disk of=/dev/null bs=$size count=64 iflag=direct 2>/dev/null
	dd if=/dev/zero of=$disk bs=$size count=64 oflag=direct conv=fsync 2>/dev/null
done
# Many markers: the flush that follows uses the slot again, and writes its header over the first of them.
for copy in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
	cat /job/marker
done >/tmp/markers
dd if=/tmp/markers of=$disk bs=4096 count=1 conv=sync,fsync 2>/dev/null
echo "WAITING"
read -r answer
mkdir /out/counters
ls /sys/bus/pci/devices/0000:00:05.0 >/out/function
cp /sys/bus/pci/devices/0000:00:05.0/virtio*/nodma/* /out/counters
