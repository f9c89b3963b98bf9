# A disk in daily use: a file system with 5000 files, written, read again after a remount; discard; fio.
set -e
test -b /dev/vda
cat /proc/version >/out/version
cat /sys/bus/virtio/devices/virtio0/features >/out/features

mkfs.ext4 -q /dev/vda 120M # fio writes behind it
mount -t ext4 /dev/vda /mnt
tar -x -C /mnt -f /job/tree.tar
find /mnt/tree -type f | wc -l >/out/files
(cd /mnt && find tree -type f | sort | xargs sha256sum) >/tmp/before
sync
umount /mnt
mount -t ext4 /dev/vda /mnt
(cd /mnt && sha256sum -c /tmp/before >/dev/null)
echo same >/out/checksums

rm -r $(ls -d /mnt/tree/* | head -n 2)
sync
fstrim /mnt
umount /mnt

cat >/tmp/fio <<END
[global]
filename=/dev/vda
ioengine=libaio
direct=1
iodepth=32
bssplit=512/20:4k/30:16k/15:64k/15:256k/10:1m/10
rw=randwrite
size=48m
verify=crc32c
verify_fatal=1
verify_state_save=0
[first]
offset=128m
[second]
offset=192m
END
fio /tmp/fio --eta=never --output-format=json --output=/out/fio.json
mkdir /out/counters
cp /sys/bus/virtio/devices/virtio0/nodma/* /out/counters
