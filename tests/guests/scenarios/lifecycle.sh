# Ten times each, under I/O: unbind and bind, remove and rescan, rmmod and insmod, function level reset.
# Before each, a record is written and flushed; after each, all records are there, and no slot is missing.
set -e
function=0000:00:05.0
pci=/sys/bus/pci/devices/$function
records=0

virtio() { basename $pci/virtio*; }
used() { cat $pci/virtio*/nodma/used; }
fail() { echo "FAILED: $*"; cat $pci/virtio*/nodma/*; dmesg | tail -n 20; exit 1; }

# Wait until a command succeeds, a minute at most.
eventually() {
	tries=600
	until "$@"; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || return 1
		usleep 100000
	done
}

record() {
	printf 'record %08d\n' $records | dd of="$(disk $function)" bs=4096 seek=$records conv=sync,fsync,notrunc 2>/dev/null
	records=$((records + 1))
}

check_records() {
	disk=$(disk $function)
	number=0
	while [ $number -lt $records ]; do
		said=$(dd if=$disk bs=4096 skip=$number count=1 iflag=direct 2>/dev/null | head -n 1)
		[ "$said" = "$(printf 'record %08d' $number)" ] || fail "record $number after $1: '$said'"
		number=$((number + 1))
	done
}

at_work() {
	read -r reads x y z writes rest <$1
	[ $reads -gt $((before_reads + 4)) ] && [ $writes -gt $((before_writes + 4)) ]
}

# Two readers and a writer, until they are told to stop or their disk is taken away; returns when they are at it. They
# hold the disk open, as a mounted file system does, so that the name is not free for the next binding while they run;
# and they never open it by its name again, which would make a file of it where the disk is gone.
start_load() {
	disk=$(disk $function)
	touch /tmp/load
	for job in 1 2; do
		(exec 3<$disk; while [ -e /tmp/load ] && dd if=/proc/self/fd/3 of=/dev/null bs=256k count=256 iflag=direct; do :; done) 2>/dev/null &
	done
	(exec 3<>$disk; while [ -e /tmp/load ] && dd if=/dev/urandom of=/proc/self/fd/3 bs=64k seek=1024 count=1024 oflag=direct conv=notrunc; do :; done) 2>/dev/null &
	stat=/sys/block/${disk##*/}/stat
	read -r before_reads x y z before_writes rest <$stat
	eventually at_work $stat || fail "no reads and writes before $1"
}

is_idle() { [ "$(used)" = "$idle" ]; }

check() {
	rm /tmp/load
	wait
	eventually is_idle || fail "after $1 $(used) slots are used, and $idle are when idle"
	check_records "$1"
	echo "$1 $round" >>/out/done
}

disk $function
idle=$(used)
for round in 1 2 3 4 5 6 7 8 9 10; do
	record
	start_load unbind
	device=$(virtio)
	echo $device >/sys/bus/virtio/drivers/virtio_blk/unbind
	echo $device >/sys/bus/virtio/drivers/virtio_blk/bind
	check unbind

	record
	start_load remove
	echo 1 >$pci/remove
	echo 1 >/sys/bus/pci/rescan
	disk $function
	check remove

	record
	start_load rmmod
	rmmod nodma 2>/dev/null && fail "rmmod while a driver uses the module's device"
	device=$(virtio)
	echo $device >/sys/bus/virtio/drivers/virtio_blk/unbind
	wait
	rmmod nodma
	insmod /job/drivers/nodma.ko watch_ms=200
	disk $function
	check rmmod

	record
	start_load reset
	[ "$(cat $pci/reset_method)" = flr ] || fail "no FLR: $(cat $pci/reset_method)"
	echo 1 >$pci/reset
	# Newer kernels start the driver over by themselves. With others the device has forgotten its queues, and this
	# module ends what it owes; then it is bound again.
	if ! dd if="$(disk $function)" of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null; then
		echo "FLR needed a new binding" >>/out/flr
		device=$(virtio)
		echo $device >/sys/bus/virtio/drivers/virtio_blk/unbind
		echo $device >/sys/bus/virtio/drivers/virtio_blk/bind
	fi
	check reset
done
dmesg | grep -E 'WARNING|never given back|not mapped' && fail "the kernel complained"
echo $records >/out/records
