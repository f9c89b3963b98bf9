"""Runs in a guest: take a function by vfio-pci, reset it, and read its status in configuration space."""

import fcntl
import os
import struct
import sys
from pathlib import Path

TYPE1, BASE, VIABLE = 1, 0x3B64, 1
SET_IOMMU, GET_GROUP_STATUS, SET_CONTAINER, GET_DEVICE_FD = BASE + 2, BASE + 3, BASE + 4, BASE + 6
GET_REGION_INFO, RESET = BASE + 8, BASE + 11
CONFIG = 7

function = sys.argv[1]
group = Path("/sys/bus/pci/devices", function, "iommu_group").readlink().name
container = os.open("/dev/vfio/vfio", os.O_RDWR)
holder = os.open(f"/dev/vfio/{group}", os.O_RDWR)
status = bytearray(struct.pack("=II", 8, 0))
fcntl.ioctl(holder, GET_GROUP_STATUS, status)
assert struct.unpack("=II", status)[1] & VIABLE
fcntl.ioctl(holder, SET_CONTAINER, struct.pack("=i", container))
fcntl.ioctl(container, SET_IOMMU, TYPE1)
device = fcntl.ioctl(holder, GET_DEVICE_FD, bytearray(function.encode() + b"\0"))
fcntl.ioctl(device, RESET)
region = bytearray(struct.pack("=IIIIQQ", 32, 0, CONFIG, 0, 0, 0))
fcntl.ioctl(device, GET_REGION_INFO, region)
offset = struct.unpack("=IIIIQQ", region)[5]
print(os.pread(device, 4, offset).hex())
