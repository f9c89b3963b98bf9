# No driver in the kernel: Python, in the guest, against both functions of a slot.
set -e
for function in 0 1; do
	echo 0000:00:05.$function >/sys/bus/pci/devices/0000:00:05.$function/driver/unbind
done
PYTHONPATH=/job/python python3 /job/user_space_slot.py >/out/report.json
