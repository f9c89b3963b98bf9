# Two disks, four queues each, used by four processors at once.
set -e
for disk in vda vdb; do
	ls /sys/block/$disk/mq | wc -l >>/out/queues
done
cat >/tmp/fio <<END
[global]
ioengine=libaio
direct=1
iodepth=16
rw=randwrite
bsrange=4k-64k
size=12m
verify=crc32c
verify_fatal=1
verify_state_save=0
END
for disk in vda vdb; do
	for cpu in 0 1 2 3; do
		printf '[%s-%s]\nfilename=/dev/%s\noffset=%sm\ncpus_allowed=%s\n' $disk $cpu $disk $((cpu * 16)) $cpu >>/tmp/fio
	done
done
fio /tmp/fio --eta=never --output-format=json --output=/out/fio.json
for disk in 0 1; do
	mkdir /out/counters$disk
	cp /sys/bus/virtio/devices/virtio$disk/nodma/* /out/counters$disk
done
grep virtio /proc/interrupts >/out/interrupts
