# Ten times each, under I/O: unbind and bind, remove and rescan, rmmod and insmod, function level reset.
# Before each, a record is written and flushed; after each, all records are there, and no slot is missing.
set -e
function=0000:00:05.0
pci=/sys/bus/pci/devices/$function
records=0

virtio() { basename $pci/virtio*; }
used() { cat $pci/virtio*/nodma/used; }
fail() { echo "FAILED: $*"; cat $pci/virtio*/nodma/*; dmesg | tail -n 20; exit 1; }

record() {
	printf 'record %08d\n' $records | dd of=/dev/vda bs=4096 seek=$records conv=sync,fsync,notrunc 2>/dev/null
	records=$((records + 1))
}

check_records() {
	number=0
	while [ $number -lt $records ]; do
		said=$(dd if=/dev/vda bs=4096 skip=$number count=1 iflag=direct 2>/dev/null | head -n 1)
		[ "$said" = "$(printf 'record %08d' $number)" ] || fail "record $number after $1: '$said'"
		number=$((number + 1))
	done
}

# Two readers and a writer, until they are told to stop or their disk is taken away; returns when they are at it.
start_load() {
	touch /tmp/load
	for job in 1 2; do
		(while [ -e /tmp/load ] && dd if=/dev/vda of=/dev/null bs=256k count=256 iflag=direct; do :; done) 2>/dev/null &
	done
	(while [ -e /tmp/load ] && dd if=/dev/urandom of=/dev/vda bs=64k seek=1024 count=1024 oflag=direct conv=notrunc; do :; done) 2>/dev/null &
	read -r before_reads x y z before_writes rest </sys/block/vda/stat
	while :; do
		read -r reads x y z writes rest </sys/block/vda/stat
		[ $reads -gt $((before_reads + 4)) ] && [ $writes -gt $((before_writes + 4)) ] && break
	done
}

check() {
	rm /tmp/load
	wait
	[ "$(used)" = "$idle" ] || fail "after $1 $(used) slots are used, and $idle are when idle"
	check_records "$1"
	echo "$1 $round" >>/out/done
}

test -b /dev/vda
idle=$(used)
for round in 1 2 3 4 5 6 7 8 9 10; do
	record
	start_load
	device=$(virtio)
	echo $device >/sys/bus/virtio/drivers/virtio_blk/unbind
	echo $device >/sys/bus/virtio/drivers/virtio_blk/bind
	check unbind

	record
	start_load
	echo 1 >$pci/remove
	echo 1 >/sys/bus/pci/rescan
	check remove

	record
	start_load
	rmmod nodma 2>/dev/null && fail "rmmod while a driver uses the module's device"
	device=$(virtio)
	echo $device >/sys/bus/virtio/drivers/virtio_blk/unbind
	wait
	rmmod nodma
	insmod /job/drivers/nodma.ko watch_ms=200
	check rmmod

	record
	start_load
	[ "$(cat $pci/reset_method)" = flr ] || fail "no FLR: $(cat $pci/reset_method)"
	echo 1 >$pci/reset
	# Newer kernels start the driver over by themselves. With others the device has forgotten its queues, and this
	# module ends what it owes; then it is bound again.
	if ! dd if=/dev/vda of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null; then
		echo "FLR needed a new binding" >>/out/flr
		device=$(virtio)
		echo $device >/sys/bus/virtio/drivers/virtio_blk/unbind
		echo $device >/sys/bus/virtio/drivers/virtio_blk/bind
	fi
	check reset
done
dmesg | grep -E 'WARNING|never given back|never mapped|never allocated' && fail "the kernel complained"
echo $records >/out/records
