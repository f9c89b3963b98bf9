# No driver in the kernel: Python, in the guest, against sysfs.
set -e
device=/sys/bus/pci/devices/0000:00:05.0
echo 0000:00:05.0 >$device/driver/unbind
test ! -e $device/virtio*
PYTHONPATH=/job/python python3 /job/user_space.py >/out/report.json
