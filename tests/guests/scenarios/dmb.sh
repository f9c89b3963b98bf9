# fio on a disk whose addresses are offsets, each block verified; and the module's counters.
set -e
cat >/tmp/fio <<END
[dmb]
filename=/dev/vda
ioengine=libaio
direct=1
iodepth=16
rw=randwrite
bssplit=512/20:4k/40:16k/20:128k/20
size=24m
verify=crc32c
verify_fatal=1
verify_state_save=0
END
fio /tmp/fio --eta=never --output-format=json --output=/out/fio.json
cp /sys/bus/virtio/devices/virtio0/features /out/features
cp /sys/bus/virtio/devices/virtio0/nodma/* /out
