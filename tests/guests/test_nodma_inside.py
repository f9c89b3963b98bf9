"""nodma itself in a guest: it looks at the function there, and drives it with no driver in the kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nodma
from nodma.guest import Kit

pytestmark = pytest.mark.timeout(900)

SCRIPT = """
set -e
nodma --version >/out/version
nodma inspect -v 0000:00:05.0 >/out/inspect
echo 0000:00:05.0 >/sys/bus/pci/devices/0000:00:05.0/driver/unbind
python3 -c "from nodma.driver import open_disk; print(open_disk('0000:00:05.0').pread(16, 0))" >/out/read
"""


def test_program_nodma(lab: Any, kit: Kit, tmp_path: Path) -> None:
    image = lab.image()
    with image.open("r+b") as file:
        file.write(b"sixteen bytes...")
    script = tmp_path / "script"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "nodma", "guest", "run", "--disk", image, "--program", "nodma"]
    command += ["--script", script, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert nodma.__version__ in (tmp_path / "out" / "version").read_text()
    said = (tmp_path / "out" / "inspect").read_text()
    assert "1af4:1042" in said
    assert "SWIOTLB" in said
    assert (tmp_path / "out" / "read").read_text() == "b'sixteen bytes...'\n"
