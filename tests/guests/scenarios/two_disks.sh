# Two disks, four queues each, used by four processors at once.
set -e
pci=/sys/bus/pci/devices
functions="0000:00:05.0 0000:00:06.0"
for function in $functions; do
	disk=$(disk $function)
	ls /sys/block/${disk##*/}/mq | wc -l >>/out/queues
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
for function in $functions; do
	disk=$(disk $function)
	for cpu in 0 1 2 3; do
		printf '[%s-%s]\nfilename=%s\noffset=%sm\ncpus_allowed=%s\n' ${disk##*/} $cpu $disk $((cpu * 16)) $cpu >>/tmp/fio
	done
done
fio /tmp/fio --eta=never --output-format=json --output=/out/fio.json
for function in $functions; do
	mkdir /out/$function
	cp $pci/$function/virtio*/nodma/* /out/$function
done
grep virtio /proc/interrupts >/out/interrupts
