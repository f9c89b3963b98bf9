# Sourced by scenarios: verified I/O on a disk, while something happens to it. What starts it says on which disk.
# fio writes with checksums and reads all of it back, again and again, in 16 MiB from 64 MiB on.
load_begin() { # DISK
	load_disk=$1
	mkdir -p /tmp/load
	touch /tmp/load/on
	echo 0 >/tmp/load/rounds
	(
		round=0
		while [ -e /tmp/load/on ]; do
			fio --name=load --filename=/dev/$load_disk --offset=64m --size=16m --rw=randwrite --bsrange=4k-64k \
				--ioengine=libaio --direct=1 --iodepth=8 --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
				--randseed=$round --eta=never >/tmp/load/fio 2>&1 || {
				cp /tmp/load/fio /tmp/load/failed
				break
			}
			round=$((round + 1))
			echo $round >/tmp/load/rounds
		done
	) &
	load=$!
}

# Wait until requests were completed since this was called.
load_moves() {
	read -r r0 x x x w0 rest </sys/block/$load_disk/stat
	while :; do
		read -r r x x x w rest </sys/block/$load_disk/stat
		[ $((r + w)) -gt $((r0 + w0 + 16)) ] && return
		[ -e /tmp/load/failed ] && load_end
	done
}

# Let fio end its round; what it read was what it had written, or the scenario ends here.
load_end() {
	rm -f /tmp/load/on
	wait $load
	if [ -e /tmp/load/failed ]; then
		echo "FAILED: fio found an error on $load_disk"
		cat /tmp/load/failed
		dmesg | tail -n 30
		exit 1
	fi
	cp /tmp/load/rounds /out/rounds
	[ "$(cat /tmp/load/rounds)" -gt 0 ]
}

# Write garbage and read, without an end and without looking, until the disk is gone or /tmp/noise is.
noise_begin() { # DISK
	touch /tmp/noise
	for job in 1 2; do
		(while [ -e /tmp/noise ] && dd if=/dev/urandom of=/dev/$1 bs=64k seek=1024 count=512 oflag=direct conv=notrunc; do :; done) 2>/dev/null &
	done
	(while [ -e /tmp/noise ] && dd if=/dev/$1 of=/dev/null bs=256k count=128 iflag=direct; do :; done) 2>/dev/null &
	load_disk=$1
	load_moves
}

# Records, each flushed before this returns; they lie before what load and noise write to.
record() { # DISK NUMBER
	printf 'record %08d\n' $2 | dd of=/dev/$1 bs=4096 seek=$2 conv=sync,fsync,notrunc 2>/dev/null
}

check_records() { # DISK COUNT
	number=0
	while [ $number -lt $2 ]; do
		said=$(dd if=/dev/$1 bs=4096 skip=$number count=1 iflag=direct 2>/dev/null | head -n 1)
		if [ "$said" != "$(printf 'record %08d' $number)" ]; then
			echo "FAILED: record $number of $1 is '$said'"
			exit 1
		fi
		number=$((number + 1))
	done
}

# The disk that a function has now, whatever its name.
disk_of() { # FUNCTION
	ls /sys/bus/pci/devices/$1/virtio*/block 2>/dev/null
}

# Whatever of the module's has no place for it is said by the kernel.
check_slots() { # FUNCTION IDLE
	used=$(cat /sys/bus/pci/devices/$1/virtio*/nodma/used)
	[ "$used" = "$2" ] && return
	echo "FAILED: $used slots are used, and $2 are when idle"
	exit 1
}
