# This script lies on the disk that is the root file system, like everything else here.
set -e
grep ' / ' /proc/mounts | grep -v rootfs >/out/root
dd if=/dev/urandom of=/data bs=1M count=8 2>/dev/null
sha256sum </data >/digest
sync
echo 3 >/proc/sys/vm/drop_caches
sha256sum </data | cmp - /digest
cat /digest >/out/digest
