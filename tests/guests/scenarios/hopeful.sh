# A kernel that knows nothing of restricted DMA, and a device that hopes. The driver's probe never ends, so it is
# somebody else's.
for driver in /job/late/*; do
	insmod $driver &
done
until [ $(($(cat /sys/bus/virtio/devices/virtio0/status) & 0x40)) != 0 ]; do :; done
echo "STATUS $(cat /sys/bus/virtio/devices/virtio0/status)"
dd if=/dev/urandom of=/tmp/noise bs=1M count=4 2>/dev/null && echo "THE GUEST IS WELL"
read -r never </dev/console
