"""A distribution's kernel for any machine: file systems and drivers are modules, and come along."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodma.guest import Kit
from nodma.guest.kit import GENERIC, set_up

pytestmark = [pytest.mark.timeout(900), pytest.mark.distribution_kernel]

SCRIPT = """
set -e
disk=$(disk)
cat /proc/version >/out/version
mkfs.ext4 -q -O metadata_csum $disk
mount $disk /mnt
dd if=/dev/urandom of=/mnt/file bs=1M count=8 2>/dev/null
sha256sum </mnt/file >/out/digest
umount /mnt
mount -o ro $disk /mnt
sha256sum </mnt/file | cmp - /out/digest
mkdir /tmp/one /tmp/two /tmp/both
echo one >/tmp/one/file
mount -t overlay overlay -o lowerdir=/tmp/one:/tmp/two /tmp/both
cat /tmp/both/file
cut -d ' ' -f 1 /proc/modules >/out/modules
"""


@pytest.fixture(scope="module")
def generic_kit(kit: Kit) -> Kit:
    """The kit with the kernel that it fetches by name."""
    return set_up(kit.directory, extras=[GENERIC])


@pytest.mark.parametrize("named", ["by name", "as a file"])
def test_file_systems_come_along(
    lab: Any, generic_kit: Kit, fsck: Callable[[Path], None], tmp_path: Path, named: str
) -> None:
    kernel = generic_kit.kernel(GENERIC)
    assert "cloud" not in kernel.release
    assert {"ext4.ko", "jbd2.ko"} <= set(kernel.files_of(["ext4"]))
    image = lab.image()
    script = tmp_path / "script"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "nodma", "guest", "run", "--json", "--kernel"]
    command += [GENERIC if named == "by name" else kernel.image, "--disk", image, "--script", script]
    command += ["--program", "e2fsprogs", "--driver", "virtio_blk", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["kernel"] == kernel.release
    assert kernel.release in (tmp_path / "out" / "version").read_text()
    loaded = (tmp_path / "out" / "modules").read_text().split()
    assert {"ext4", "jbd2", "nodma", "overlay"} <= set(loaded)
    assert any(name.startswith("crc32c") for name in loaded)  # ext4 only wishes for it
    fsck(image)
