# fio on every disk there is, each block verified; and the module's counters of each.
set -e
for disk in /sys/block/vd*; do
	name=${disk##*/}
	cat >>/tmp/fio <<END
[$name]
filename=/dev/$name
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
done
fio /tmp/fio --eta=never --output-format=json --output=/out/fio.json
cp /sys/bus/virtio/devices/virtio0/features /out/features
for device in /sys/bus/virtio/devices/virtio*; do
	mkdir /out/${device##*/}
	cp $device/nodma/* /out/${device##*/}
done
