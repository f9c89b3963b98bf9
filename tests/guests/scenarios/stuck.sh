# Of seven slots: a disk whose resets do not end, one that answers nothing, an honest one, an owner with a sharer that answers
# nothing, one whose configuration does not settle, one whose
# reset does not end when the machine is powered off, and one that shows less configuration than its driver reads.
pci=/sys/bus/pci/devices
virtio=/sys/bus/virtio/drivers/virtio_blk
ask() { echo "PLEASE $1" && read -r answer; }
name() { basename $pci/0000:00:$1/virtio*; }
disk() { ls $pci/0000:00:$1/virtio*/block; }
read_one() { dd if=/dev/$(disk $1) of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null; }
ask stop
for slot in 06.0 08.1; do
	dd if=/dev/$(disk $slot) of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null &
done
sleep 1

# While others wait, a device of their bus comes and goes.
name 05.0 >$virtio/unbind &
stuck=$!
name 06.0 >$virtio/unbind &
silent=$!
name 07.0 >$virtio/unbind
name 07.0 >$virtio/bind
read_one 07.0 && echo honest >>/out/done
wait $stuck
{ name 05.0 >$virtio/bind; } 2>/dev/null || echo stuck >>/out/done
wait $silent
echo silent >>/out/done
echo 1 >$pci/0000:00:08.0/remove
echo 1 >/sys/bus/pci/rescan
read_one 08.0 && echo owner >>/out/done
name 09.0 >$virtio/unbind
name 09.0 >$virtio/bind
read_one 09.0 && echo unsettled >>/out/done
name 0b.0 >$virtio/unbind
name 0b.0 >$virtio/bind
read_one 0b.0 && echo greedy >>/out/done
dmesg | grep nodma >/out/dmesg
