"""What a device process gives up, tried on processes that gave it up."""

from __future__ import annotations

import os
import resource
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nodma.errors import Unavailable
from nodma.hosting import lockdown

ORDINARY_USER = ("unshare", "--user") if os.geteuid() == 0 else ()
"""In a user namespace without any mapping, root's processes keep their user, and lose all privileges."""
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")

STATE = """
import ctypes
from nodma.hosting.lockdown import lock_down
lock_down(auditable=AUDITABLE)
libc = ctypes.CDLL(None)
print(libc.prctl(39, 0, 0, 0, 0), libc.prctl(3, 0, 0, 0, 0))
"""

CRASH = """
import os
from nodma.hosting.lockdown import lock_down
from nodma.window import Window
window, private = Window.create(65536), bytearray(32)
os.readv(0, [window.view(4096, 32), private])
lock_down(auditable=AUDITABLE)
os.abort()
"""


def run(program: str, auditable: bool, **options: Any) -> list[bytes]:
    command = [sys.executable, "-c", program.replace("AUDITABLE", str(auditable))]
    return subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=60, **options).stdout.split()


@pytest.mark.parametrize("auditable", [True, False])
def test_new_privileges_are_given_up_and_being_dumped_unless_auditable(auditable: bool) -> None:
    assert run(STATE, auditable) == [b"1", b"%d" % auditable]


@pytest.mark.skipif(CORE_PATTERN.read_text().strip() != "core", reason="core files go elsewhere on this machine")
@pytest.mark.parametrize("auditable", [True, False])
def test_a_core_file_has_nothing_of_the_window(tmp_path: Path, auditable: bool) -> None:
    in_window, in_private = secrets.token_bytes(32), secrets.token_bytes(32)
    run(
        CRASH,
        auditable,
        cwd=tmp_path,
        input=in_window + in_private,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2),
    )
    cores = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(cores) == auditable
    for core in cores:
        assert in_private in core  # else this test could not fail
        assert in_window not in core


def test_a_kernel_that_refuses_is_reported() -> None:
    with pytest.raises(Unavailable, match=r"the kernel refused prctl\(38, 2\): Invalid argument"):
        lockdown._prctl(38, 2)


INSPECT = """
import sys
from pathlib import Path
from nodma.errors import Unavailable
from nodma.hosting.process import Served
from nodma.procfs import ProcessView
with Served("blk", "-s", sys.argv[1] + "/s", "--image", sys.argv[1] + "/image", *sys.argv[2:]) as served:
    status = Path(f"/proc/{served.pid}/status").read_text()
    print("NoNewPrivs:\\t1\\n" in status, served.ready["auditable"])
    for look in (ProcessView.maps, ProcessView.descriptors):
        try:
            print(len(look(ProcessView(served.pid))) > 0)
        except Unavailable as error:
            print(str(error).partition(".")[0].partition(": ")[2])
"""


@pytest.mark.parametrize("options", [[], ["--auditable"]])
def test_an_ordinary_user_may_inspect_a_served_disk_only_if_it_is_auditable(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    done = subprocess.run(
        [*ORDINARY_USER, sys.executable, "-c", INSPECT, str(tmp_path), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    expected = ["True", "True"] if options else ["Permission denied", "Permission denied"]
    assert done.stdout.splitlines() == [f"True {bool(options)}", *expected], done.stderr
