# A guest with a virtual IOMMU: the disk of a device without DMA beside a network card whose DMA is translated, both at work.
set -e
function=/sys/bus/pci/devices/0000:00:05.0
card=/sys/bus/pci/devices/0000:00:09.0
driver=/sys/bus/pci/drivers/virtio-pci
fail() { echo "FAILED: $*"; dmesg | tail -n 40; exit 1; }
read_all() { dd if="$1" bs=64k count=512 iflag=direct 2>/dev/null | sha256sum; }

disk=$(disk)
cat $function/iommu_group/type >/out/function.domain
cat $card/iommu_group/type >/out/card.domain
cat $card/virtio*/features >/out/card.features
ifconfig "$(ls $card/virtio*/net)" 10.0.2.15 netmask 255.255.255.0 up

# fio verifies the disk while files come over the network; each of them is compared with its checksum.
cat >/tmp/fio <<END
[disk]
filename=$disk
ioengine=libaio
direct=1
iodepth=16
rw=randwrite
bssplit=512/20:4k/40:64k/30:256k/10
size=32m
verify=crc32c
verify_fatal=1
verify_state_save=0
END
fio /tmp/fio --eta=never --output-format=json --output=/out/fio.json &
verifying=$!
for file in 1 2 3; do
	tftp -g -r file -l /tmp/file 10.0.2.2
	(cd /tmp && sha256sum -c /job/file.sha256) >>/out/downloads
done
wait $verifying
mkdir /out/counters
cp $function/virtio*/nodma/* /out/counters

# Let go of, the function has the IOMMU's operations again, as a driver sees that does not know the feature; taken on again,
# the module's.
held=$(read_all $disk)
echo 0000:00:05.0 >$driver/unbind
rmmod nodma
echo 0000:00:05.0 >$driver/bind
dmesg | grep -c 'device refuses features' >/out/refused
insmod /job/drivers/nodma.ko
[ "$(read_all "$(disk)")" = "$held" ] || fail "other data after a new binding"
cat $function/iommu_group/type >>/out/function.domain
dmesg | grep -E 'WARNING|BUG|DMAR:.*fault|never given back|not mapped' && fail "the kernel complained"
dmesg | grep nodma >/out/dmesg
