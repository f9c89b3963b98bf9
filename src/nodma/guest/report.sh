# How the guest maps the window, what its memory is, and how fast its disk is.
mount -t debugfs debugfs /sys/kernel/debug
function=0000:00:05.0
cat /sys/bus/pci/devices/$function/resource >/out/resource
cat /sys/kernel/debug/x86/pat_memtype_list >/out/memory_types
cat /proc/mtrr >/out/mtrr
grep -m 1 ^flags /proc/cpuinfo >/out/flags
ls /sys/devices/platform /dev >/out/devices
for job in "read1 randread 4k 1" "read32 randread 4k 32" "write32 randwrite 4k 32" "stream read 256k 8"; do
	set -- $job
	fio --name=$1 --filename=/dev/vda --rw=$2 --bs=$3 --iodepth=$4 --ioengine=libaio --direct=1 --time_based --runtime=2 \
		--size=128m --eta=never --output-format=json --output=/out/$1.json
done
mkdir /out/counters
cp /sys/bus/virtio/devices/virtio0/nodma/* /out/counters
dmesg >/out/log
