# A pool that fills: everything is slower, and right.
set -e
cat >/tmp/fio <<END
[global]
filename=/dev/vda
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
cp /sys/bus/virtio/devices/virtio0/nodma/* /out/counters
