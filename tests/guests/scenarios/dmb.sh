# fio on a disk whose addresses are offsets, each block verified; and the module's counters.
set -e
device=/sys/bus/pci/devices/0000:00:05.0
disk=$(disk)
cat >/tmp/fio <<END
[dmb]
filename=$disk
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
cp $device/virtio*/features /out/features
cp $device/virtio*/nodma/* /out
