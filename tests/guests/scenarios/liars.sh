# Functions whose capability 10 cannot be trusted, and at the end one that can.
dmesg | grep 'no bouncing' | sed 's/^.*\(0000:[0-9a-f:.]*\)/\1/' >/out/refusals
for device in /sys/bus/virtio/devices/*; do
	test -d $device/nodma && basename "$(dirname "$(readlink -f $device)")" >>/out/attached
done
dmesg | grep -c 'device refuses features' >/out/refused
test -b /dev/vda && dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct
