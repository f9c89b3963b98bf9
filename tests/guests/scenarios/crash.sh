# Numbered records, each flushed before it is announced, with fio beside it, until the device dies. What was announced
# must be there when the disk is served again.
device=/sys/bus/pci/devices/0000:00:05.0
disk=$(disk)
stat=/sys/block/${disk##*/}/stat
number=0
cat >/tmp/fio <<END
[load]
filename=$disk
ioengine=libaio
direct=1
iodepth=32
rw=randrw
bsrange=4k-256k
offset=64m
size=128m
time_based
runtime=600
END
fio /tmp/fio --eta=never --output=/out/fio.txt 2>&1 &
read -r x x x x before rest <$stat
while :; do
	read -r x x x x writes rest <$stat
	[ $writes -gt $((before + 50)) ] && break
done
while { printf 'record %08d\n' $number | dd of=$disk bs=4096 seek=$number conv=sync,fsync,notrunc 2>/out/dd.txt; }; do
	echo "FLUSHED $number"
	number=$((number + 1))
done
echo "WRITE FAILED $number"
wait $!
echo "FIO ENDED $?"
echo $number >/out/flushed
cat $device/virtio*/nodma/broken >/out/broken
dmesg | grep nodma >/out/dmesg
# The guest itself is well, and can let go of the disk.
basename $device/virtio* >/sys/bus/virtio/drivers/virtio_blk/unbind
test -b $disk || echo gone >/out/unbound
