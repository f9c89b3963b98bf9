"""Runs in a guest: load a kernel by kexec_file_load, or start the one that is loaded.

kexec.py load|crash KERNEL INITRAMFS COMMAND-LINE
kexec.py go
"""

import ctypes
import os
import sys

KEXEC_FILE_LOAD = 320
ON_CRASH = 2
REBOOT_KEXEC = 0x45584543

libc = ctypes.CDLL(None, use_errno=True)
if sys.argv[1] == "go":
    failed = libc.reboot(REBOOT_KEXEC)
else:
    how, kernel, initramfs, line = sys.argv[1:]
    files = [os.open(path, os.O_RDONLY) for path in (kernel, initramfs)]
    told = line.encode() + b"\0"
    flags = ctypes.c_ulong(ON_CRASH if how == "crash" else 0)
    failed = libc.syscall(KEXEC_FILE_LOAD, *files, ctypes.c_ulong(len(told)), told, flags)
if failed:
    sys.exit(f"kexec.py {sys.argv[1]}: {os.strerror(ctypes.get_errno())}")
