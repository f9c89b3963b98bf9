# A disk in daily use: a file system with 5000 files, written, read again after a remount; discard; fio.
set -e
device=/sys/bus/pci/devices/0000:00:05.0
disk=$(disk)
cat /proc/version >/out/version
cat $device/virtio*/features >/out/features

mkfs.ext4 -q $disk 120M # fio writes behind it
mount -t ext4 $disk /mnt
tar -x -C /mnt -f /job/tree.tar
find /mnt/tree -type f | wc -l >/out/files
(cd /mnt && find tree -type f | sort | xargs sha256sum) >/tmp/before
sync
umount /mnt
mount -t ext4 $disk /mnt
(cd /mnt && sha256sum -c /tmp/before >/dev/null)
echo same >/out/checksums

rm -r $(ls -d /mnt/tree/* | head -n 2)
sync
fstrim /mnt
umount /mnt

cat >/tmp/fio <<END
[global]
filename=$disk
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
cp $device/virtio*/nodma/* /out/counters
