# A pool that fills: everything is slower, and right.
set -e
device=/sys/bus/pci/devices/0000:00:05.0
disk=$(disk)
cat >/tmp/fio <<END
[global]
filename=$disk
ioengine=libaio
direct=1
iodepth=32
rw=randwrite
size=16m
verify=crc32c
verify_fatal=1
verify_state_save=0
[small]
bs=4k
[large]
offset=16m
bs=1m
END
fio /tmp/fio --eta=never --output-format=json --output=/out/fio.json
mkdir /out/counters
cp $device/virtio*/nodma/* /out/counters
