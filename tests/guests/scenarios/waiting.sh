# A driver that came before the module waits for a device that was given addresses outside its window.
insmod /job/blk/virtio_blk.ko &
until [ -e /sys/bus/virtio/drivers/virtio_blk/virtio0 ] || grep -q virtio_blk /proc/modules; do :; done
sleep 2
insmod /job/nodma.ko take_on_ms=2000 && echo LOADED
