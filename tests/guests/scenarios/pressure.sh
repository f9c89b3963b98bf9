# Eight disks with small windows, in a guest that has too little memory: seven are written through the page cache and
# verified, and the eighth is swap.
set -e
swap=
number=0
for function in 05 06 07 08 09 0a 0b 0c; do
	disk=$(ls /sys/bus/pci/devices/0000:00:$function.0/virtio*/block)
	if [ $function = 0c ]; then
		swap=$disk
	else
		printf '[%s]\nfilename=/dev/%s\n' $disk $disk >>/tmp/jobs
	fi
done
mkswap /dev/$swap >/dev/null
swapon /dev/$swap
cat >/tmp/fio <<END
[global]
ioengine=libaio
iodepth=8
rw=randwrite
bsrange=4k-128k
size=24m
fsync=64
verify=crc32c
verify_fatal=1
verify_state_save=0
END
cat /tmp/jobs >>/tmp/fio
# More than there is: half of it must go to the swap while fio's pages want to be written.
mount -t tmpfs -o size=2g tmpfs /mnt
total=$(sed -n 's/MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
fio /tmp/fio --eta=never --output-format=json --output=/out/fio.json &
fio=$!
dd if=/dev/urandom of=/tmp/block bs=1M count=1 2>/dev/null
number=0
while [ $((number * 1024)) -lt $((total * 5 / 4)) ]; do
	{ echo $number; cat /tmp/block; } >/mnt/$number
	number=$((number + 1))
done
cat /mnt/* | sha256sum >/out/one
wait $fio
{
	one=0
	for name in $(cd /mnt; ls); do { echo $name; cat /tmp/block; }; done
} | sha256sum >/out/other
sed -n 's/^pswp/pswp/p' /proc/vmstat >/out/swapped
swapon=$(sed -n '2s/.*partition[^0-9]*[0-9]*[^0-9]*\([0-9]*\).*/\1/p' /proc/swaps)
echo $swapon >/out/used
dmesg | grep -c 'Out of memory' >/out/killed || :
for function in 05 06 07 08 09 0a 0b 0c; do
	cat /sys/bus/pci/devices/0000:00:$function.0/virtio*/nodma/full
done >/out/full
rm /mnt/*
swapoff /dev/$swap
