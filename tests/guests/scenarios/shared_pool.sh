# Two disks of one slot, in one pool: verified together, bound anew, without their owner's driver, without the module, and
# without their owner.
set -e
owner=0000:00:05.0
sharer=0000:00:05.1
pci=/sys/bus/pci/devices
virtio=/sys/bus/virtio/drivers/virtio_blk
fail() { echo "FAILED: $*"; dmesg | tail -n 30; exit 1; }
name() { basename $pci/$1/virtio*; }
of() { cat $pci/$1/virtio*/nodma/$2; }
keep() { mkdir -p /out/$1 && cp $pci/$2/virtio*/nodma/* /out/$1; }
read_all() { dd if=$(disk $1) bs=64k iflag=direct 2>/dev/null | sha256sum; }

# Each disk gets contents of its own; both at once, so that the pool holds data of both.
{
	for function in $owner $sharer; do
		printf '[%s]\nfilename=%s\nioengine=libaio\ndirect=1\n' $function $(disk $function)
		printf 'rw=randwrite\nbsrange=4k-64k\niodepth=16\nsize=8m\nverify=crc32c\nverify_fatal=1\nverify_state_save=0\n'
	done
} >/tmp/verify
fio /tmp/verify --eta=never --output-format=json --output=/out/verify.json
keep owner $owner
keep sharer $sharer
idle_owner=$(of $owner used)
idle_sharer=$(of $sharer used)
held=$(read_all $sharer)

# Wait until a command succeeds, a minute at most.
eventually() {
	tries=600
	until "$@"; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || return 1
		usleep 100000
	done
}

are_idle() {
	[ "$(of $owner used)" = $idle_owner ] && [ "$(of $sharer used)" = $idle_sharer ] &&
		[ "$(of $owner pool_used)" = $((idle_owner + idle_sharer)) ]
}

counts_more() { [ "$(of $1 unmaps)" -gt $2 ]; }

check() {
	disk $owner
	disk $sharer
	eventually are_idle || fail "after $1 the owner uses $(of $owner used) slots, not $idle_owner, the sharer" \
		"$(of $sharer used), not $idle_sharer, and the pool has $(of $owner pool_used)"
	[ "$(read_all $sharer)" = "$held" ] || fail "after $1 the sharer's data are other ones"
	echo "$1" >>/out/done
}

# A reader of each disk, until it is told to stop or its disk is taken away; returns when they are at it.
start_load() {
	touch /tmp/load
	for function in $owner $sharer; do
		disk=$(disk $function)
		(while [ -e /tmp/load ]; do dd if=$disk of=/dev/null bs=64k iflag=direct || break; done) 2>/dev/null &
	done
	for function in $owner $sharer; do
		before=$(of $function unmaps)
		eventually counts_more $function $((before + 50)) || fail "$function is not read"
	done
}

end_load() {
	rm /tmp/load
	wait
}

for round in 1 2 3; do
	start_load
	for function in $owner $sharer; do
		device=$(name $function)
		echo $device >$virtio/unbind
		echo $device >$virtio/bind
	done
	end_load
done
check bind

# A reset of the owner would switch off the pool that the sharer is using. One of the sharer concerns nobody else.
grep -q flr $pci/$owner/reset_method && fail "the owner can be reset"
{ echo 1 >$pci/$owner/reset; } 2>/dev/null && fail "the owner was reset"
grep -q flr $pci/$sharer/reset_method || fail "the sharer cannot be reset"
check reset

# Without the owner's driver: it takes the sharer's along, and the sharer gets it back with the owner's.
ls /sys/class/devlink >/out/links
start_load
echo $owner >/sys/bus/pci/drivers/virtio-pci/unbind
end_load
[ -e $pci/$sharer/virtio*/driver ] && fail "the sharer kept its driver without the owner's"
{ name $sharer >$virtio/bind; } 2>/dev/null && fail "the sharer got a driver before its owner"
echo $owner >/sys/bus/pci/drivers/virtio-pci/bind
until [ -e $pci/$sharer/virtio*/block ]; do :; done
check driver

# Without the module.
start_load
rmmod nodma 2>/dev/null && fail "rmmod while drivers use the module's devices"
for function in $owner $sharer; do name $function >$virtio/unbind; done
end_load
rmmod nodma
insmod /job/drivers/nodma.ko watch_ms=200 reserve_kib=128
check module
[ "$(of $sharer reserved)" = 64 ] || fail "the reservation is $(of $sharer reserved) slots"

name $sharer >$virtio/unbind
echo $sharer >/sys/bus/pci/drivers/virtio-pci/unbind
grep -q flr $pci/$owner/reset_method || fail "the owner cannot be reset when it is alone again"
echo $sharer >/sys/bus/pci/drivers/virtio-pci/bind

# Without the owner: what reads the sharer ends, by an error; the sharer is back when its owner is.
start_load
echo 1 >$pci/$owner/remove
wait
rm /tmp/load
[ -e $pci/$sharer/virtio*/driver ] && fail "the sharer has a driver still"
device=$(name $sharer)
echo $device >$virtio/bind 2>/dev/null && fail "the sharer got a driver without its pool"
dmesg | grep 'no bouncing' | sed 's/^.*no bouncing: //' >/out/refusal
echo 1 >/sys/bus/pci/rescan
echo $device >$virtio/bind
idle_owner=$(of $owner used)
idle_sharer=$(of $sharer used)
check removal
dmesg | grep -E 'WARNING|BUG|never given back|not mapped' && fail "the kernel complained"
dmesg | grep nodma >/out/dmesg
