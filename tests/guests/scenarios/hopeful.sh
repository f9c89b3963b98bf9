# A kernel that knows nothing of restricted DMA, and a device that hopes. The driver's probe never ends, so it is
# somebody else's.
for driver in /job/late/*; do
	insmod $driver &
done
status=/sys/bus/pci/devices/0000:00:05.0/virtio*/status
until [ $(($(cat $status) & 0x40)) != 0 ]; do :; done
echo "STATUS $(cat $status)"
dd if=/dev/urandom of=/tmp/noise bs=1M count=4 2>/dev/null && echo "THE GUEST IS WELL"
read -r never </dev/console
